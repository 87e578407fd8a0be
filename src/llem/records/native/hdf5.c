/* Attributes, short tables and the places of chunks by the calls of the HDF5 that h5py has loaded,
 * without an object of Python's for each of them. What is not as records have it is left to h5py,
 * and so is every error: it says which. */

#include <stdint.h>
#include <string.h>

typedef int64_t Id;

/* The order is that of NAMES in hdf5.py. */
static struct {
    Id (*Oopen)(Id, const char *, Id);
    int (*Oclose)(Id);
    int (*Aiterate2)(Id, int, int, uint64_t *, void *, void *);
    Id (*Aopen)(Id, const char *, Id);
    Id (*Aget_type)(Id);
    Id (*Aget_space)(Id);
    int (*Aread)(Id, Id, void *);
    int (*Aclose)(Id);
    int (*Tget_class)(Id);
    size_t (*Tget_size)(Id);
    int (*Tget_sign)(Id);
    int (*Tget_order)(Id);
    int (*Tis_variable_str)(Id);
    int (*Tenum_valueof)(Id, const char *, void *);
    int (*Tequal)(Id, Id);
    int (*Tclose)(Id);
    int (*Sget_simple_extent_type)(Id);
    int (*Sget_simple_extent_ndims)(Id);
    int (*Sget_simple_extent_dims)(Id, uint64_t *, uint64_t *);
    int (*Sclose)(Id);
    Id (*Dopen2)(Id, const char *, Id);
    Id (*Dget_type)(Id);
    Id (*Dget_space)(Id);
    int (*Dread)(Id, Id, Id, Id, Id, void *);
    Id (*Dget_create_plist)(Id);
    int (*Dchunk_iter)(Id, Id, void *, void *);
    int (*Dclose)(Id);
    int (*Pget_layout)(Id);
    int (*Pget_nfilters)(Id);
    int (*Pget_chunk)(Id, int, uint64_t *);
    int (*Pclose)(Id);
} H5;

enum { INTEGER = 0, REAL = 1, STRING = 3, NAMED = 8, LITTLE = 0, SCALAR = 0, CHUNKED = 2 };

void llem_hdf5(void *const *functions)
{
    memcpy(&H5, functions, sizeof H5);
}

/* What an attribute is: how long its name and its value are, which follow; its class (-1: one that
 * is left to h5py), and whether it has a sign. */
typedef struct {
    int32_t name, size, kind, sign;
} Head;

typedef struct {
    char *out;
    int64_t capacity, used;
} Told;

static int tell(Id of, const char *name, const void *info, void *into)
{
    (void)info;
    Told *told = into;
    size_t long_ = strlen(name);
    Head head = {(int32_t)long_, 0, -1, 0};
    if (told->used + (int64_t)(sizeof head + long_) > told->capacity)
        return -1;
    char *at = told->out + told->used + sizeof head;
    memcpy(at, name, long_);
    at += long_;
    int64_t room = told->capacity - told->used - (int64_t)(sizeof head + long_);
    Id own = H5.Aopen(of, name, 0);
    if (own < 0)
        return -1;
    Id type = H5.Aget_type(own), space = H5.Aget_space(own);
    int failed = type < 0 || space < 0;
    if (!failed) {
        int kind = H5.Tget_class(type);
        size_t size = H5.Tget_size(type);
        int plain = kind == STRING ? H5.Tis_variable_str(type) == 0
                                   : (kind == INTEGER || kind == REAL)
                                         && H5.Tget_order(type) == LITTLE;
        int8_t yes = 0; /* h5py's truth values */
        if (kind == NAMED && size == 1 && H5.Tenum_valueof(type, "TRUE", &yes) >= 0)
            plain = yes == 1;
        if (plain && H5.Sget_simple_extent_type(space) == SCALAR && (int64_t)size <= room) {
            head.kind = kind, head.size = (int32_t)size;
            head.sign = kind == INTEGER ? H5.Tget_sign(type) : 0;
            failed = H5.Aread(own, type, at) < 0;
        }
    }
    if (space >= 0)
        H5.Sclose(space);
    if (type >= 0)
        H5.Tclose(type);
    H5.Aclose(own);
    memcpy(told->out + told->used, &head, sizeof head);
    told->used += (int64_t)(sizeof head + long_) + head.size;
    return failed ? -1 : 0;
}

/* All attributes of an object into `out`, in the order of their names: the bytes used, or -1. */
int64_t llem_attributes(Id file, const char *name, char *out, int64_t capacity)
{
    Told told = {out, capacity, 0};
    Id object = H5.Oopen(file, name, 0);
    if (object < 0)
        return -1;
    int failed = H5.Aiterate2(object, 0, 0, NULL, (void *)tell, &told) < 0;
    H5.Oclose(object);
    return failed ? -1 : told.used;
}

/* The rows of a table of one dimension and this type; -1 where it is another. */
static int64_t rows_of(Id table, Id type)
{
    Id own = H5.Dget_type(table), space = H5.Dget_space(table);
    uint64_t rows = 0;
    int fits = own >= 0 && space >= 0 && H5.Tequal(own, type) > 0
               && H5.Sget_simple_extent_ndims(space) == 1
               && H5.Sget_simple_extent_dims(space, &rows, NULL) == 1;
    if (own >= 0)
        H5.Tclose(own);
    if (space >= 0)
        H5.Sclose(space);
    return fits ? (int64_t)rows : -1;
}

/* Read a table of rows of this type, where it has no more than `capacity`: its rows, or -1. */
int64_t llem_table(Id file, const char *name, Id type, char *out, int64_t capacity)
{
    Id table = H5.Dopen2(file, name, 0);
    if (table < 0)
        return -1;
    int64_t rows = rows_of(table, type);
    if (rows > capacity || (rows > 0 && H5.Dread(table, type, 0, 0, 0, out) < 0))
        rows = -1;
    H5.Dclose(table);
    return rows;
}

typedef struct {
    int64_t rows, chunk, chunks, found, *place;
} Places;

static int place(const uint64_t *start, unsigned skipped, uint64_t at, uint64_t size, void *into)
{
    (void)skipped, (void)size;
    Places *places = into;
    int64_t first = (int64_t)start[0];
    if (first < places->rows && first % places->chunk == 0) {
        places->found += places->place[first / places->chunk] < 0;
        places->place[first / places->chunk] = (int64_t)at;
    }
    return 0;
}

/* Where the chunks of a table of this type lie, at most `capacity` of them. told: rows, rows of a
 * chunk. -1 where it is another, is filtered, or a chunk was never written. */
int64_t llem_places(
    Id file, const char *name, Id type, int64_t *places, int64_t capacity, int64_t *told)
{
    Id table = H5.Dopen2(file, name, 0);
    if (table < 0)
        return -1;
    int64_t rows = rows_of(table, type);
    Id plist = H5.Dget_create_plist(table);
    uint64_t chunk = 0;
    int plain = rows >= 0 && plist >= 0 && H5.Pget_layout(plist) == CHUNKED
                && H5.Pget_nfilters(plist) == 0 && H5.Pget_chunk(plist, 1, &chunk) == 1 && chunk;
    if (plist >= 0)
        H5.Pclose(plist);
    if (plain) {
        Places found = {rows, (int64_t)chunk, (rows + (int64_t)chunk - 1) / (int64_t)chunk, 0,
                        places};
        plain = found.chunks <= capacity;
        for (int64_t i = 0; plain && i < found.chunks; i++)
            places[i] = -1;
        plain = plain && H5.Dchunk_iter(table, 0, (void *)place, &found) >= 0
                && found.found == found.chunks;
        told[0] = rows, told[1] = (int64_t)chunk;
    }
    H5.Dclose(table);
    return plain ? 0 : -1;
}
