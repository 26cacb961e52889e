"""`generate --chat`: a conversation in the terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from tiny_generators import generating

from adapter_export.commands.bundles._chat import CHAT, Chat, chat
from adapter_export.runtime import Bundle, Decoding
from adapter_export.runtime.generation.text_writer import TextWriter


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "chat") / "bundle"


@pytest.fixture(scope="module")
def writer(bundle: Path) -> TextWriter:
    return Bundle.open(bundle).writer()


def _said(*texts: str, system: str = "") -> list[dict[str, str]]:
    roles = ("user", "assistant")
    first = [{"role": "system", "content": system}] if system else []
    return [*first, *({"role": roles[at % 2], "content": text} for at, text in enumerate(texts))]


def _answer(writer: TextWriter, adapter: str | None, messages: list[dict[str, str]], count: int = 4) -> str:
    prompt = writer.chat.render(messages)
    return writer.write([prompt], adapters=[adapter], decoding=Decoding(count))[0].text


def test_adapters_can_change_within_a_conversation(cli: Any, bundle: Path, writer: TextWriter) -> None:
    first = _answer(writer, "a", _said("w5 w9", system="w3"))
    messages = _said("w5 w9", first, "w33", system="w3")
    second = _answer(writer, "b", messages)
    assert second != _answer(writer, "a", messages)
    lines = "/system w3\nw5 w9\n\n/adapter c\n/adapter b\nw33\n/bye\n/history\n/exit\nw5\n"
    result = cli.done("generate", bundle, "--chat", "--adapter", "a", "--max-new-tokens", "4", stdin=lines)
    answers = f"{first}\n{second}\n"
    assert result.stdout.startswith(answers)
    assert result.stdout.removeprefix(answers).splitlines() == [
        *("system: w3", "user: w5 w9", f"assistant: {first}", "user: w33", f"assistant: {second}")
    ]
    for part in ("no such adapter; found `c`; expected `a`, `b`", "unknown command `/bye`", "--max-new-tokens N"):
        assert part in result.stderr
    document = cli.json("generate", bundle, "--chat", "--adapter", "a", "--max-new-tokens", "4", stdin=lines)
    assert document == {"adapter": "b", "messages": [*messages, {"role": "assistant", "content": second}]}


def test_an_interrupt_stops_the_answer_and_not_the_program(
    bundle: Path, writer: TextWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _answer(writer, "a", _said("w5 w9"), 12)

    class Screen:
        """Raises at the third piece what Python raises at Ctrl-C, without a signal, which would end a test's worker."""

        def __init__(self) -> None:
            self.written, self.reports = list[str](), list[str]()

        def write(self, text: str) -> None:
            self.written.append(text)
            if len(self.written) == 3:
                raise KeyboardInterrupt

        def report(self, text: str) -> None:
            self.reports.append(text)

    screen, conversation = Screen(), chat(bundle, adapter="a", max_new_tokens=12)
    monkeypatch.setattr("sys.stdin", io.StringIO("w5 w9\nw17\n"))
    CHAT.command.show(conversation, screen)  # type: ignore[arg-type]
    part = "".join(screen.written[:3])
    assert whole.startswith(part)
    assert part != whole
    assert "stopped" in screen.reports[0]
    assert conversation.messages[:3] == _said("w5 w9", part, "w17")
    assert conversation.messages[3]["content"] == _answer(writer, "a", conversation.messages[:3], 12)


def test_a_message_that_cannot_be_answered_is_forgotten(writer: TextWriter) -> None:
    conversation = Chat(writer, "a", Decoding(3))
    first = "".join(conversation.ask("w5"))
    with pytest.raises(Exception, match="prompt 0"):
        "".join(conversation.ask(" ".join(["w5"] * 60)))
    assert conversation.messages == _said("w5", first)


def test_chat_refuses_invalid_calls(cli: Any, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = generating(tmp_path_factory, "llama") / "bundle"
    cli.refused(3, "no chat template", "generate", plain, "--chat", "--adapter", "a")
    cli.refused(2, "--prompt", "generate", bundle, "--chat", "--adapter", "a", "--prompt", "w5")
    cli.refused(2, "no adapter is named", "generate", bundle, "--chat")
    cli.refused(3, "no such adapter", "generate", bundle, "--chat", "--adapter", "c")
