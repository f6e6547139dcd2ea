"""What the demonstration shows: live progress, tables, the picture and summary.json.

Everything here is a function of the records that nodes write; nothing here starts, stops or asks a node.
"""
