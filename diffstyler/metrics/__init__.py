"""Figures of stylized pictures: what is left of the content, how near the style is, what happened at the masks."""
