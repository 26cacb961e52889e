"""Models of images and video."""

from __future__ import annotations

from functools import partial

import partial_bases
import small_bases
from recipes import IMAGE, SIZES, Model, image, of_transformers, values

IMAGES = {
    "ViT": image(4, "vit"),
    "DeiT": image(4, "deit"),
    "BEiT": image(4, "beit"),
    "DINOv2": image(4, "dinov2", mlp_ratio=2),
    "DINOv2 with registers": image(4, "dinov2_with_registers", mlp_ratio=2, num_register_tokens=2),
    "DINOv3": image(4, "dinov3_vit"),
    "ViT-MAE": image(4, "vit_mae", mask_ratio=0.5),
    "YOLOS": image(4, "yolos", num_detection_tokens=3, image_size=[16, 16]),
    "CLIP vision": image(4, "clip_vision_model"),
    "SigLIP vision": image(4, "siglip_vision_model"),
    "DPT": image(4, "dpt", backbone_out_indices=[0, 1, 1, 1], is_hybrid=False),
    "Swin": image(
        6,
        "swin",
        size=32,
        embed_dim=8,
        window_size=2,
        depths=[1, 2],
        num_heads=[2, 2],
        num_attention_heads=None,
        num_hidden_layers=None,
    ),
    "Swin v2": image(
        6,
        "swinv2",
        size=32,
        embed_dim=8,
        window_size=2,
        depths=[1, 2],
        num_heads=[2, 2],
        num_attention_heads=None,
        num_hidden_layers=None,
    ),
    "Hiera": Model(8, partial(partial_bases._hiera, 2, 2), values("pixel_values", 3, 64, 64)),
    "Hiera, depths 1 and 1": Model(4, partial(partial_bases._hiera, 1, 1), values("pixel_values", 3, 64, 64)),
    "PVT v2": image(
        8,
        "pvt_v2",
        size=32,
        num_encoder_blocks=2,
        depths=[2, 2],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
    ),
    "SegFormer": image(
        8,
        "segformer",
        size=32,
        num_encoder_blocks=2,
        depths=[2, 2],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
    ),
    "PoolFormer": image(
        8,
        "poolformer",
        size=32,
        num_encoder_blocks=2,
        depths=[2, 2],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        padding=[2, 1],
        mlp_ratio=2.0,
    ),
    "ConvNeXt": image(4, "convnext", size=32, num_stages=2, depths=[2, 2], hidden_sizes=[8, 16]),
    "ResNet": Model(0, small_bases._residual_convolutions, values("pixel_values", 3, 16, 16)),
    "TimeSformer": Model(
        6,
        partial(of_transformers, "timesformer", **SIZES, **IMAGE, num_frames=2),
        values("pixel_values", 2, 3, 16, 16),
    ),
    "ViViT": Model(
        4,
        partial(of_transformers, "vivit", **SIZES, image_size=16, num_frames=2, tubelet_size=[2, 8, 8]),
        values("pixel_values", 2, 3, 16, 16),
    ),
}
