"""The public surface: the error tree, the commands, the names in the documents."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import adapter_export
from adapter_export import errors, runtime
from adapter_export.cli.main import COMMANDS
from adapter_export.graph.kinds import KINDS, houlsby
from adapter_export.graph.ops import ACTIVATIONS

ROOT = Path(__file__).parents[1]


def _tree(error: type[errors.AdapterExportError], depth: int = 0) -> Iterator[tuple[int, str]]:
    yield depth, error.__name__
    for child in error.__subclasses__():
        yield from _tree(child, depth + 1)


def _drawn() -> Iterator[tuple[int, str]]:
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([ │├└─]*)([A-Z]\w+Error)\b", line)
        if found:
            yield len(found[1]) // 4, found[2]


def test_documented_error_tree_matches_the_classes() -> None:
    """A new error: draw it in the docstring of `errors.py`, in the order of the classes."""
    assert sorted(_drawn()) == sorted(_tree(errors.AdapterExportError))


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("AdapterExportError", 5),
        ("UsageError", 2),
        ("MissingExtraError", 2),
        ("InputError", 3),
        ("FormatError", 3),
        ("WriteError", 3),
        ("BaseMismatchError", 3),
        ("NothingComparedError", 4),
    ],
)
def test_exit_codes_are_stable(name: str, code: int) -> None:
    assert getattr(errors, name).exit_code == code


def test_commands_and_their_order_are_stable() -> None:
    training = ["plan", "train", "sweep", "lint", "drop", "distil"]
    making = ["capture", "sites", "identify", *training, "pack", "import", "doctor", "compose", "merge", "export"]
    using = ["build", "add", "remove", "check", "verify", "sign", "evaluate", "compare", "run", "generate"]
    using += ["run-many", "inspect"]
    serving = ["serve", "bench", "ship", "push", "pull"]
    assert list(COMMANDS) == [*making, *using, *serving]


def test_public_verbs_are_stable_and_documented() -> None:
    """A new verb: export it, show it in `docs/how-to/python.md`, and name it here."""
    making = {"capture", "identify", "open_base", "train", "attach", "trainer_callback", "pack", "load_adapter", "save"}
    making |= {
        "plan",
        "sweep",
        "lint",
        "drop",
        "distil",
        "import_adapterhub",
        "import_finetuned",
        "import_peft",
        "doctor",
        "compose",
        "merge",
        "export",
    }
    bundles = {"build", "add", "remove", "open_bundle", "check", "self_test", "verify", "evaluate"}
    bundles |= {"compare", "generate", "inspect", "sign", "verify_signature", "run_many", "serve", "bench"}
    bundles |= {"ship", "push", "pull"}
    assert set(adapter_export.__all__) == {
        *making,
        *bundles,
        "Base",
        "Inspection",
        "Reporter",
        "Sites",
        "errors",
        "__version__",
    }
    for name in making | bundles:
        verb = getattr(adapter_export, name)
        assert inspect.getdoc(verb), name
        hints = inspect.signature(verb).parameters.values()
        assert all(one.annotation is not inspect.Parameter.empty for one in hints), name


def test_the_runtime_gives_bundles_and_sessions() -> None:
    assert runtime.__all__ == [
        "AnsweredRow",
        "Answerer",
        "Bundle",
        "Decoding",
        "Prediction",
        "ProgressBar",
        "Reading",
        "Request",
        "Row",
        "Session",
        "check_session",
    ]
    public = {name for name in dir(runtime.Session) if not name.startswith("_")}
    tasks = {
        "classify",
        "classify_many",
        "classify_tokens",
        "predict",
        "embed",
        "embed_sparse",
        "embed_tokens",
        "answer",
    }
    facts = {"adapters", "head", "labels", "output", "provider", "statistics", "task", "answering", "named"}
    facts |= {"may_mix", "may_pad", "base_head", "real_tokens", "described"}
    assert public == tasks | facts | {
        *("fan_out", "load", "load_bytes", "run", "run_many", "run_on_device", "unload"),
        *("decoder", "generate", "transcribe"),
    }


def test_kinds_and_activations_stay() -> None:
    assert list(KINDS) == [
        *("houlsby", "pfeiffer", "parallel"),
        *("seq_bn", "double_seq_bn", "par_bn", "scaled_par_bn", "adapter_plus", "compacter", "compacter++"),
        *("nice", "lora", "ia3"),
    ]
    assert set(ACTIVATIONS) >= {
        "relu",
        "gelu",
        "gelu_tanh",
        "silu",
        "tanh",
        "sigmoid",
        "leaky_relu",
        "quick_gelu",
        "identity",
    }
    assert houlsby().components[0].places.roles == ("attention", "ffn")


def test_the_version_is_that_of_the_package() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'\nversion = "{adapter_export.__version__}"\n' in pyproject


@pytest.mark.parametrize("made", [runtime.Bundle, runtime.Session], ids=lambda made: made.__name__)
def test_public_methods_have_docstrings(made: type) -> None:
    for name, member in inspect.getmembers(made):
        if not name.startswith("_") and callable(member):
            assert inspect.getdoc(member), f"{made.__name__}.{name}"


def _reads(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)}


def _binds(statement: ast.stmt) -> set[str]:
    """Return the names that a statement binds whenever it runs."""
    bound: list[ast.AST | None] = []
    if isinstance(statement, ast.Assign):
        bound = [*statement.targets]
    elif isinstance(statement, ast.AnnAssign | ast.For):
        bound = [statement.target]
    elif isinstance(statement, ast.With):
        bound = [item.optional_vars for item in statement.items]
    names = (node for part in bound if part is not None for node in ast.walk(part))
    return {node.id for node in names if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def _overwritten(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield line, function and name of each parameter that a function always overwrites before it reads it."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            arguments = function.args
            unread = {each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
            for statement in function.body:
                unread -= _reads(statement)
                bound = unread & _binds(statement)
                yield from ((statement.lineno, function.name, name) for name in sorted(bound))
                unread -= bound


def test_parameters_are_read_before_being_overwritten() -> None:
    """`plan` once ignored `rows`, whose name it reused for the batch size, without a word."""
    assert list(_overwritten(ast.parse("def call(a, b):\n    use(b)\n    a, b = b, 1"))) == [(3, "call", "a")]
    files = {path: ast.parse(path.read_text("utf-8")) for path in sorted((ROOT / "adapter_export").rglob("*.py"))}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: `{name}` of `{call}`"
        for path, tree in files.items()
        for line, call, name in _overwritten(tree)
    ]
    assert not wrong, "\n".join(wrong)
