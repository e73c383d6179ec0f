"""The paper's tables: rows as data, the runs they need, the numbers beside the paper's."""
