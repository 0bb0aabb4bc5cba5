"""What the commands print: jobs, runs, results, and how a line or a table is written."""
