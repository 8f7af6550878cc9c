"""Reading and writing files safely: atomic writes, resumable folders, cached tables, JSON records."""
