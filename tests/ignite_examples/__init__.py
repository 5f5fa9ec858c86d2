"""Six situations of Ignite's own examples, wired with Ignite's handlers and with this project's.

`<name>.py` holds model, data and step, `<name>_stock.py` and `<name>_ours.py` only the wiring.
"""
