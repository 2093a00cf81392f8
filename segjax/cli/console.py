"""Text formatting shared by the verbs."""


def format_bytes(count: int | float) -> str:
    """Formats a number of bytes.

    Args:
        count: bytes.

    Returns:
        A few digits and a unit.

    Example:
        >>> format_bytes(1536000)
        '1.465 MiB'
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.2f} GiB"
