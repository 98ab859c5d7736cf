"""Arrays and tables to PNG files. Never torch."""

import logging

# Without a writable home matplotlib reports its temporary font cache when it is imported: true, and no help.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
