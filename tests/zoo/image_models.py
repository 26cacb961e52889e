"""Models of images and video."""

from __future__ import annotations

from functools import partial
from typing import Any

import partial_bases
import small_bases
import torch
import transformers as hf
from recipes import IMAGE, LAYERS, SIZES, STACK_SIZES, Model, image, of_transformers, values
from torch import nn


def _table_transformer() -> nn.Module:
    backbone = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"])
    config = hf.TableTransformerConfig(backbone_config=backbone, num_queries=5, **STACK_SIZES)
    return hf.TableTransformerForObjectDetection(config)


def _detector(kind: str, backbone: hf.PreTrainedConfig, **settings: Any) -> nn.Module:
    """RT-DETR and its relatives: an encoder of one layer, a decoder of two layers of three sublayers."""
    return of_transformers(
        kind,
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 12, 16],
        encoder_ffn_dim=32,
        encoder_attention_heads=2,
        d_model=16,
        num_queries=5,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=32,
        decoder_layers=2,
        decoder_attention_heads=2,
        num_denoising=0,
        **settings,
    )


def _rt_detr(kind: str) -> nn.Module:
    backbone = hf.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 12, 16], depths=[1] * 4, layer_type="basic", out_features=STAGES
    )
    return _detector(kind, backbone, decoder_n_points=2)


def _d_fine() -> nn.Module:
    backbone = hf.HGNetV2Config(
        stem_channels=[3, 8, 8],
        hidden_sizes=[8, 8, 12, 16],
        depths=[1] * 4,
        stage_in_channels=[8, 8, 8, 12],
        stage_mid_channels=[8] * 4,
        stage_out_channels=[8, 8, 12, 16],
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
        out_features=STAGES,
    )
    return _detector("d_fine", backbone, decoder_n_points=[2, 2, 2])


def _vitpose() -> nn.Module:
    backbone = hf.VitPoseBackboneConfig(**LAYERS, image_size=[32, 32], patch_size=[8, 8], mlp_ratio=2, out_indices=[2])
    return hf.VitPoseForPoseEstimation(hf.VitPoseConfig(backbone_config=backbone, num_labels=5))


def _sam() -> nn.Module:
    vision = {
        **LAYERS,
        **IMAGE,
        "window_size": 2,
        "global_attn_indexes": [1],
        "output_channels": 16,
        "mlp_dim": 32,
        "num_pos_feats": 8,
    }
    config = hf.SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 16, **IMAGE, "mask_input_channels": 4},
        mask_decoder_config={**LAYERS, "mlp_dim": 32, "iou_head_hidden_dim": 16},
    )
    return hf.SamModel(config)


STAGES = ["stage2", "stage3", "stage4"]
PYRAMID = {"size": 32, "num_encoder_blocks": 2, "depths": [2, 2], "hidden_sizes": [8, 16], "strides": [4, 2]} | {
    "num_attention_heads": [1, 2],
    "mlp_ratios": [2, 2],
}
NO_LAYERS = {"num_attention_heads": None, "num_hidden_layers": None}
WINDOWS = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2}

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
    "Swin": Model(6, partial(of_transformers, "swin", **WINDOWS), values("pixel_values", 3, 32, 32)),
    "Swin v2": Model(6, partial(of_transformers, "swinv2", **WINDOWS), values("pixel_values", 3, 32, 32)),
    "Hiera": Model(8, partial(partial_bases._hiera, 2, 2), values("pixel_values", 3, 64, 64)),
    "Hiera, depths 1 and 1": Model(4, partial(partial_bases._hiera, 1, 1), values("pixel_values", 3, 64, 64)),
    "PVT v2": image(8, "pvt_v2", sr_ratios=[2, 1], patch_sizes=[7, 3], **PYRAMID),
    "SegFormer": image(8, "segformer", sr_ratios=[2, 1], patch_sizes=[7, 3], **PYRAMID),
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
    "Data2Vec vision": image(4, "data2vec-vision"),
    "ViT-MSN": image(4, "vit_msn"),
    "ViTPose": Model(4, _vitpose, values("pixel_values", 3, 32, 32)),
    "Donut Swin": Model(6, partial(of_transformers, "donut-swin", **WINDOWS), values("pixel_values", 3, 32, 32)),
    "Swin2SR": Model(
        8,
        partial(
            of_transformers,
            "swin2sr",
            image_size=16,
            patch_size=1,
            embed_dim=8,
            depths=[2, 2],
            num_heads=[2, 2],
            window_size=4,
        ),
        values("pixel_values", 3, 16, 16),
    ),
    "CvT": image(
        6,
        "cvt",
        size=32,
        patch_sizes=[7, 3],
        patch_stride=[4, 2],
        patch_padding=[2, 1],
        embed_dim=[8, 16],
        num_heads=[1, 2],
        depth=[1, 2],
        mlp_ratio=[2.0, 2.0],
        cls_token=[False, True],
        **{name: [0.0, 0.0] for name in ("attention_drop_rate", "drop_rate", "drop_path_rate")},
        **NO_LAYERS,
    ),
    "GLPN": image(8, "glpn", sr_ratios=[2, 1], patch_sizes=[7, 3], **PYRAMID),
    "PVT": image(8, "pvt", sequence_reduction_ratios=[2, 1], patch_sizes=[4, 2], **PYRAMID),
    "LeViT": image(
        8,
        "levit",
        size=32,
        patch_size=16,
        hidden_sizes=[8, 12, 16],
        num_attention_heads=[1, 1, 2],
        depths=[1, 1, 1],
        key_dim=[4, 4, 4],
        num_hidden_layers=None,
    ),
    "MGP-STR": Model(
        4,
        partial(
            of_transformers,
            "mgp-str",
            name="MgpstrForSceneTextRecognition",
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            mlp_ratio=2.0,
            image_size=[16, 32],
            patch_size=4,
            max_token_length=5,
            num_character_labels=9,
            num_bpe_labels=9,
            num_wordpiece_labels=9,
        ),
        values("pixel_values", 3, 16, 32),
    ),
    "MobileViT": image(
        18,
        "mobilevit",
        size=64,
        patch_size=2,
        hidden_sizes=[8, 12, 16],
        neck_hidden_sizes=[4, 8, 8, 12, 12, 16, 16],
        num_hidden_layers=None,
    ),
    "SAM": Model(
        12, _sam, lambda: {"pixel_values": torch.randn(2, 3, 16, 16), "input_points": torch.rand(2, 1, 2, 2) * 16}
    ),
    "Table Transformer": Model(10, _table_transformer, values("pixel_values", 3, 32, 32)),
    "RT-DETR": Model(8, partial(_rt_detr, "rt_detr"), values("pixel_values", 3, 64, 64)),
    "RT-DETR v2": Model(8, partial(_rt_detr, "rt_detr_v2"), values("pixel_values", 3, 64, 64)),
    "D-FINE": Model(8, _d_fine, values("pixel_values", 3, 64, 64)),
    "ConvNeXt v2": image(4, "convnextv2", size=32, num_stages=2, depths=[2, 2], hidden_sizes=[8, 16], **NO_LAYERS),
    "EfficientNet": Model(
        0,
        partial(
            of_transformers,
            "efficientnet",
            image_size=32,
            width_coefficient=0.25,
            depth_coefficient=0.1,
            hidden_dim=320,
        ),
        values("pixel_values", 3, 32, 32),
    ),
    "MobileNet v1": Model(
        0,
        partial(of_transformers, "mobilenet_v1", image_size=32, depth_multiplier=0.25),
        values("pixel_values", 3, 32, 32),
    ),
    "MobileNet v2": Model(
        0,
        partial(of_transformers, "mobilenet_v2", image_size=32, depth_multiplier=0.25),
        values("pixel_values", 3, 32, 32),
    ),
    "RegNet": Model(
        0,
        partial(of_transformers, "regnet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4),
        values("pixel_values", 3, 32, 32),
    ),
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
