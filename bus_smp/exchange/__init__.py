"""Other people's formats: what leaves for a PACS."""
