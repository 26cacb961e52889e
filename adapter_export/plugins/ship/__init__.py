"""Folders in which serving platforms and web pages take a bundle."""

from adapter_export.plugin import Plugin

_SHIP = "adapter_export.plugins.ship.commands.ship"

PLUGIN = Plugin("ship", commands={"serving": (_SHIP,)}, calls={"ship": _SHIP})
