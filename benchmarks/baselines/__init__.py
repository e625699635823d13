"""Every attention method on the second suite, at equal attention computed."""
