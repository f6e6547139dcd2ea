"""`python -m folkmoot.node.cli`: the command without its installed script."""

from folkmoot.node.cli import main

main()
