"""Taking a log, or a part of it, out of a store and into another, proved on both sides.

Everything goes as it is stored: ids, versions, times, texts, digests, links. A whole log keeps its
positions and the numbers of its streams; a part gets new ones where it comes to.
"""

from projections.transfer.moving import (
    Exists,
    NotEmpty,
    Taken,
    TargetDamaged,
    copy_log,
    export_log,
    import_log,
    is_export,
    is_there,
)
from projections.transfer.portable import ExportDamaged
from projections.transfer.scope import Part

__all__ = [
    "Exists",
    "ExportDamaged",
    "NotEmpty",
    "Part",
    "Taken",
    "TargetDamaged",
    "copy_log",
    "export_log",
    "import_log",
    "is_export",
    "is_there",
]
