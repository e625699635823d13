"""Whether this checkout gives the same bits as an older commit, setting by setting."""
