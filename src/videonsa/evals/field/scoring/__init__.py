"""Two scorings of every answer: the rules of the paper's time, and those of lmms-eval 0.7.3."""
