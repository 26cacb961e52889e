"""`python -m adapter_export_runtime BUNDLE`: compare a bundle with its golden data, or answer a text with it."""

import argparse
import json
import sys

from adapter_export_runtime import Bundle, __version__, check_session
from adapter_export_runtime.errors import AdapterExportError


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m adapter_export_runtime", description=__doc__)
    parser.add_argument("bundle", help="folder of a bundle")
    parser.add_argument("--text", help="text to answer, as a line of JSON; needs the extra `text`")
    parser.add_argument("--adapter", help="adapter that answers the text")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args()
    if (options.text is None) != (options.adapter is None):
        parser.error("--text and --adapter go together")
    try:
        bundle = Bundle.open(options.bundle)
        if options.text is not None:
            (answer,) = bundle.texts().answer([options.text], options.adapter)
            line = json.dumps(answer.document(), ensure_ascii=False)
        else:
            session = bundle.session()
            check_session(bundle, session)
            line = f"golden data match; adapters: {', '.join(session.adapters)}"
    except AdapterExportError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write(f"{line}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
