"""What people look at, made from tables and image files alone (never torch)."""

import logging

# Without a writable home matplotlib reports its temporary font cache as it is imported: true, and no help.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
