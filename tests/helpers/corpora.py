"""Archives as the addresses of corpora serve them."""

import io
import zipfile


def zipped(**members: bytes) -> bytes:
    """Return a zip file of `members`, name -> content; two underscores in a name stand for a slash."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()
