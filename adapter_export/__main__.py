"""`python -m adapter_export` is `adapter-export`."""

from adapter_export.cli.main import main

if __name__ == "__main__":
    main(prog_name="adapter-export")
