"""Settings of a server; each is an option of `adapter-export serve`. The module imports no server library."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from adapter_export.option import FormOption, Option
from adapter_export.providers import ProviderName


@dataclass(frozen=True)
class SessionSettings:
    """Settings of sessions.

    Attributes:
        mapped_weights: compute on memory-mapped weights, which several processes share, instead of packed copies.
        provider: the execution provider.
        form: the bundles as given, or the forms that `bench` saved.
        threads: threads of one operator.
        concurrency: concurrent calls of a session.
        max_batch_size: maximum rows of a call, and maximum texts that are generated at a time.
        max_batch_tokens: maximum tokens of the texts that are generated at a time, prompts and completions. Default:
            those whose caches take 1 GiB, at most 65,536, and at least the longest text.
        max_batch_delay: maximum batching delay in milliseconds.
        resident: adapters kept in memory; the others load on demand. Default: all are kept.
    """

    mapped_weights: Annotated[bool, "Disable prepacking so that workers share memory-mapped weights."] = False
    provider: Annotated[ProviderName, "Execution provider."] = "cpu"
    form: FormOption = "given"
    threads: Annotated[int, Option("Threads per operator.", least=1)] = 1
    concurrency: Annotated[int, Option("Concurrent calls per session.", least=1)] = 1
    max_batch_size: Annotated[int, Option("Maximum rows per call.", least=1)] = 32
    max_batch_tokens: Annotated[
        int | None,
        Option("Maximum tokens of texts generated at a time, prompts included. Default: 1 GiB of caches.", least=1),
    ] = None
    max_batch_delay: Annotated[float, "Maximum batching delay in milliseconds."] = 0.0
    resident: Annotated[
        int | None, Option("Adapters kept in memory; the others load on demand. Default: all.", least=1)
    ] = None


@dataclass(frozen=True)
class Limits:
    """Limits of requests, so that no client can block the others.

    Attributes:
        max_body: maximum bytes of a call.
        max_adapters: maximum adapters loaded in addition to those of the bundles. An idle adapter that was loaded by
            name is unloaded for another one; a request waits for that at most `request_timeout`.
        max_queue: maximum queued rows of a bundle.
        max_queue_tokens: maximum tokens of the queued rows of a bundle, those of completions included; 64 values of an
            image or audio file count as a token.
        max_file: maximum pixels of an image, or samples of an audio file, by its header.
        max_outputs: maximum values of the outputs of a call without a task, such as those of `/run`.
        max_new_tokens: maximum tokens of a completion.
        max_connections: maximum concurrent connections.
        read_timeout: seconds to receive the headers, then the body.
        request_timeout: seconds until a request is answered completely, also if streamed.
    """

    max_body: Annotated[int, Option("Maximum bytes of a call.", least=1)] = 2**22
    max_adapters: Annotated[int, Option("Maximum adapters in addition to those of the bundles.", least=0)] = 64
    max_queue: Annotated[int, Option("Maximum queued rows.", least=1)] = 4096
    max_queue_tokens: Annotated[int, Option("Maximum tokens of queued rows.", least=1)] = 2**20
    max_file: Annotated[int, Option("Maximum pixels of an image, or samples of an audio file.", least=1)] = 2**25
    max_outputs: Annotated[int, Option("Maximum values of the outputs of a call without a task.", least=1)] = 2**23
    max_new_tokens: Annotated[int, Option("Maximum tokens of a completion.", least=1)] = 4096
    max_connections: Annotated[int, Option("Maximum concurrent connections.", least=1)] = 500
    read_timeout: Annotated[float, "Seconds to receive the headers, then the body."] = 10.0
    request_timeout: Annotated[float, "Seconds until a request is answered."] = 60.0


MAX_ADAPTER_BYTES = 2**28
"""Maximum bytes of the file of an adapter."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        host: the address to listen on.
        port: the port to listen on; 0 picks a free one.
        qualify: name models with their bundles only, `bundle/adapter`.
        adapters_dir: a folder of adapters to load by name.
        hub: let administrators load adapters from hubs and registries.
        lora_root: the folder below which PEFT adapters may be that administrators load; needs `token` and `lora_base`.
        lora_base: the model that the bundles were built from, which proves those adapters.
        state: the file that stores the routes across restarts.
        drain: seconds after SIGTERM during which requests are answered and readiness fails.
        quiet: log failures only.
        sessions: settings of sessions.
        limits: limits of requests.
        token: required for administration. Default: only loopback clients may administer.
        keeps_state: whether this process writes `state`.
    """

    host: Annotated[str, "Address to listen on."] = "127.0.0.1"
    port: Annotated[int, Option("Port to listen on; 0 picks a free one.", least=0)] = 8080
    qualify: Annotated[bool, "Name models with their bundles, `bundle/adapter`."] = False
    adapters_dir: Annotated[
        Path | None, Option("Folder of adapters to load by name on demand.", "DIR", "--adapters")
    ] = None
    hub: Annotated[bool, "Let administrators load adapters from `hf://…` and `oci://…`."] = False
    lora_root: Annotated[
        Path | None, Option("Folder of PEFT adapters that administrators may load. Needs an admin token.", "DIR")
    ] = None
    lora_base: Annotated[str | None, Option("Model that the bundles were built from; it proves them.", "MODEL")] = None
    state: Annotated[Path | None, Option("File that stores the routes across restarts.", "FILE")] = None
    drain: Annotated[float, "Shutdown grace period in seconds; readiness fails meanwhile."] = 5.0
    quiet: Annotated[bool, "Log failures only."] = False
    sessions: SessionSettings = field(default_factory=SessionSettings)
    limits: Limits = field(default_factory=Limits)
    token: str | None = field(default=None, repr=False)
    keeps_state: bool = True
