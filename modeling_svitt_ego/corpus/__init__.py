"""Making and checking a corpus: annotation files from narrations, video chunks, clip shards."""
