"""From raw tables to sharded pair sequences: reading, checking, quarantine, ordering, the catalogue."""
