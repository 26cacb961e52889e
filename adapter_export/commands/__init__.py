"""Commands: one module each, in the folder of its section of `adapter-export --help`.

A module has the public call, which `adapter_export` exports, and a `COMMAND` that renders what it returns. The command
line finds modules by scanning these folders, and takes a command's name from its module, its line in the list from the
module's docstring, its page from the call's docstring, and its arguments and options from the call's signature. So a
new command is a new module, and an import in `adapter_export/__init__.py`.
"""
