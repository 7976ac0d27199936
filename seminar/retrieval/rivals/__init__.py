"""Other people's ways to the K most relevant behaviours, behind the same protocol: hashes, graphs and faiss's codes."""
