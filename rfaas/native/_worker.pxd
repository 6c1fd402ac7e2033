# The worker's engine as other Cython modules see it.
from libc.stdint cimport uint32_t


cdef extern from "lane.h" nogil:
    ctypedef struct lane_function:
        void *address
        uint32_t abi


cdef class Library:
    cdef void *handle
    cdef lane_function *functions
    cdef uint32_t count
