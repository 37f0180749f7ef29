"""Reports on studies: verdicts, statistics, figures, one page."""
