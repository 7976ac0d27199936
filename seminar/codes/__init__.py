"""Product quantisation: codebooks from mergeable statistics, codes, stamps."""
