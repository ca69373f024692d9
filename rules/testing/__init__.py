"""Unit tests of rules: the file format, the notation of series, the verdicts and the reports."""
