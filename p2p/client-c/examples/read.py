#!/usr/bin/env python3
"""Reads a file of a mount through a mapping, with ctypes: read.py LIBRARY DIRECTORY FILE"""

import ctypes
import hashlib
import sys
from ctypes import POINTER, byref, c_char_p, c_size_t, c_uint32, c_uint64, c_void_p


class Moved(ctypes.Structure):
    _fields_ = [("direct_window", c_uint64), ("direct_bar", c_uint64), ("fallback", c_uint64)]


def load(path):
    library = ctypes.CDLL(path)
    library.peerfs_last_error.restype = c_char_p
    library.peerfs_file_open.argtypes = [c_char_p, ctypes.c_bool, POINTER(c_void_p)]
    library.peerfs_session_open.argtypes = [c_char_p, c_void_p, POINTER(c_void_p)]
    library.peerfs_session_map.argtypes = [c_void_p, c_void_p, c_uint64, c_uint64, c_uint32, POINTER(c_void_p)]
    library.peerfs_mapping_range.argtypes = [c_void_p, POINTER(c_uint64), POINTER(c_uint64)]
    library.peerfs_mapping_read.argtypes = [c_void_p, c_uint64, c_char_p, c_size_t, POINTER(Moved)]
    library.peerfs_mapping_unmap.argtypes = [c_void_p, POINTER(Moved)]
    for name in ("peerfs_session_close", "peerfs_file_close"):
        getattr(library, name).argtypes = [c_void_p]
        getattr(library, name).restype = None
    return library


def main(library_path, directory, path):
    library = load(library_path)

    def call(function, *arguments):
        if function(*arguments) != 0:
            sys.exit("read.py: " + library.peerfs_last_error().decode())

    file, session, mapping = c_void_p(), c_void_p(), c_void_p()
    call(library.peerfs_file_open, path.encode(), False, byref(file))
    call(library.peerfs_session_open, directory.encode(), None, byref(session))
    call(library.peerfs_session_map, session, file, 0, 0, 0, byref(mapping))
    start, end = c_uint64(), c_uint64()
    call(library.peerfs_mapping_range, mapping, byref(start), byref(end))

    digest, buffer, moved = hashlib.sha256(), ctypes.create_string_buffer(1 << 20), Moved()
    at = start.value
    while at < end.value:
        length = min(len(buffer), end.value - at)
        call(library.peerfs_mapping_read, mapping, at, buffer, length, byref(moved))
        digest.update(buffer.raw[:length])
        at += length
    call(library.peerfs_mapping_unmap, mapping, byref(moved))
    print(digest.hexdigest(), moved.direct_window + moved.direct_bar, moved.fallback)
    library.peerfs_session_close(session)
    library.peerfs_file_close(file)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit("usage: read.py LIBRARY DIRECTORY FILE")
    main(*sys.argv[1:])
