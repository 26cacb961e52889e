"""Hold a conversation with a bundle in the terminal, for `generate --chat`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address
from adapter_export.commands.command import Command, Instead, Screen
from adapter_export.decoding import Decoding
from adapter_export.errors import RequestError, UsageError
from adapter_export.option import FormOption, Option, OptionsOf
from adapter_export.providers import ProviderName
from adapter_export.tables import Described
from adapter_export.words import argument, quoted

if TYPE_CHECKING:
    from adapter_export.runtime import Bundle
    from adapter_export.runtime.generation.text_writer import TextWriter

_HELP = "commands: /adapter NAME, /system TEXT, /history, /clear, /exit (or Ctrl-D). Ctrl-C stops an answer."


@dataclass(repr=False)
class Chat(Described):
    """A conversation with the base or an adapter of a bundle.

    Attributes:
        writer: generates the answers.
        adapter: the adapter that writes the next answer; `None` is the base.
        decoding: options of the answers.
        messages: the messages so far.
        limited: whether the last answer reached its token limit.
    """

    writer: TextWriter
    adapter: str | None
    decoding: Decoding
    messages: list[dict[str, str]] = field(default_factory=list)
    limited: bool = False

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"adapter": self.adapter or "base", "messages": len(self.messages)}

    def switch(self, adapter: str) -> None:
        """Let another adapter, or `base`, write the next answers; UsageError or RequestError if there is none."""
        name = self.writer.named(adapter)
        if name is not None and name not in self.writer.adapters:
            raise RequestError("there is no such adapter", found=f"`{name}`", expected=quoted(self.writer.adapters))
        self.adapter = name

    def instruct(self, text: str) -> None:
        """Begin the conversation with a system message, in place of an earlier one."""
        others = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *others]

    def show(self, screen: Screen) -> None:
        """Print the messages so far."""
        for message in self.messages:
            screen.line((f"{message['role']}: ", "bold"), message["content"])

    def ask(self, text: str) -> Generator[str, None, None]:
        """Yield the pieces of the answer to a message.

        Both messages become part of the conversation, also if the answer is stopped after a part of it. A message that
        cannot be answered does not.

        Raises:
            RequestError: the template refuses the conversation, or it is too long for the base.
        """
        question, answer, self.limited = {"role": "user", "content": text}, list[str](), False
        prompt = self.writer.chat.render([*self.messages, question])
        pieces = self.writer.stream([prompt], adapters=[self.adapter], decoding=self.decoding)
        try:
            for piece in pieces:
                answer.append(piece.text)
                self.limited = piece.done is not None and piece.done.finish == "length"
                yield piece.text
        except RequestError:
            answer.clear()
            raise
        finally:
            if answer:
                self.messages += [question, {"role": "assistant", "content": "".join(answer)}]


def chat(
    bundle: Bundle | Address,
    *,
    adapter: Annotated[str | None, "Adapter that answers first."] = None,
    provider: Annotated[ProviderName, "Execution provider."] = "cpu",
    form: FormOption = "given",
    threads: Annotated[int | None, "Threads per operation."] = None,
    **options: Annotated[Any, OptionsOf(Decoding)],
) -> Chat:
    """Return a conversation with BUNDLE, which has a chat template.

    Raises:
        UsageError: no adapter is named, or there is none of this name.
        RequestError: the bundle does not generate text, or has no chat template.
        InputError: the bundle cannot be used.
    """
    (decoding,) = OptionsOf(Decoding).split("chat", options)
    from adapter_export.bundle.chosen_form import chosen_form
    from adapter_export.bundle.open_bundle import open_bundle

    chosen = chosen_form(bundle, form, provider)
    opened = open_bundle(chosen.bundle)
    writer = opened.writer(opened.session(provider=chosen.provider, threads=threads, on_demand=True))
    _ = writer.chat  # raises an error without a template
    conversation = Chat(writer, None, Decoding(**decoding))
    writer.check_limit(conversation.decoding)
    conversation.adapter = writer.named(adapter)
    if conversation.adapter is not None:
        conversation.switch(conversation.adapter)
    return conversation


def _lines() -> Iterator[str]:
    """Yield lines of stdin until its end; a terminal shows a prompt, and Ctrl-C discards the line."""
    is_terminal = sys.stdin.isatty()
    while True:
        try:
            yield input("> " if is_terminal else "")
        except EOFError:
            return
        except KeyboardInterrupt:
            sys.stderr.write("\n")


def _show(conversation: Chat, screen: Screen) -> None:
    """Answer lines of stdin as they are entered."""
    if sys.stdin.isatty():
        __import__("readline")  # lets `input` edit lines and recall earlier ones
        screen.report(_HELP)
    for line in _lines():
        if line.startswith("/"):
            if not _obey(line, conversation, screen):
                return
        elif line.strip():
            _answer(line, conversation, screen)


def _answer(line: str, conversation: Chat, screen: Screen) -> None:
    try:
        with closing(conversation.ask(line)) as pieces:
            for piece in pieces:
                screen.write(piece)
        screen.write("\n")
    except KeyboardInterrupt:
        screen.write("\n")
        screen.report("stopped; the conversation has the answer so far")
    except RequestError as error:
        screen.fail(error.sentence("shell"))
    if conversation.limited:
        screen.report("the answer reached the token limit; raise it with " + argument("max_new_tokens", words="N"))


def _obey(line: str, conversation: Chat, screen: Screen) -> bool:
    """Run a command of a conversation; return whether the conversation goes on."""
    name, _, rest = line.partition(" ")
    if name == "/exit":
        return False
    known: Mapping[str, Callable[[], object]] = {
        "/adapter": lambda: conversation.switch(rest.strip()),
        "/system": lambda: conversation.instruct(rest),
        "/history": lambda: conversation.show(screen),
        "/clear": conversation.messages.clear,
        "/help": lambda: screen.report(_HELP),
    }
    if name not in known:
        screen.fail(f"unknown command `{name}`; " + _HELP)
        return True
    try:
        known[name]()
    except (RequestError, UsageError) as error:
        screen.fail(error.sentence("shell"))
    return True


def _document(conversation: Chat, screen: Screen) -> Mapping[str, object]:
    """Answer all lines of stdin, and return the conversation."""
    for line in _lines():
        if line.startswith("/history"):  # stdout has the document only
            continue
        if line.startswith("/"):
            if not _obey(line, conversation, screen):
                break
        elif line.strip():
            for _ in conversation.ask(line):
                pass
    return {"adapter": conversation.adapter, "messages": conversation.messages}


CHAT = Instead(
    Option("Hold a conversation in the terminal, by the bundle's chat template."),
    Command(chat, _show, document=_document, examples=()),
    "does not apply to a conversation",
)
"""The flag `--chat` of `generate`."""
