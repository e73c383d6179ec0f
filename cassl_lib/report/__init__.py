"""What is generated from `reports/results/`: the report, the README's tables, the figures."""
