/* thumbnail: a binary PPM picture in, one whose longer side is 128 pixels out.
 *
 * PPM (ppm(5) of Netpbm): "P6", width, height and maxval in decimal, separated
 * by white space and comments from # to the end of a line; one white-space
 * character; then three bytes per pixel, row by row.
 *
 * Each pixel of the thumbnail is the average of the area that it covers in the
 * picture, exact and rounded to nearest.  In units of 1/w of a column, where W
 * columns become w, column x covers [x w, (x + 1) w) and column j of the
 * thumbnail covers [j W, (j + 1) W): a part of one column, some whole ones, a
 * part of another.  Rows likewise.  Rows come first, for they are added byte
 * by byte, which the compiler turns into vector code; what remains for the
 * columns is one row of sums for each row of the thumbnail.
 */
#include <stdlib.h>

#include "rfaas.h"

enum {
    THUMBNAIL_SIDE = 128,
    PICTURE_SIDE_MAX = 65535, /* so that 255 times the rows fits 24 bits, times the area 40 */
    MAXVAL = 255,
    CHANNELS = 3,
};

enum status {
    NOT_A_PPM = 1,
    EMPTY,
    UNSUPPORTED_MAXVAL,
    TOO_LARGE,
    TRUNCATED,
    RESULT_TOO_LARGE,
    NO_MEMORY,
};

struct reader {
    const uint8_t *next;
    const uint8_t *end;
};

/* The part of a picture's side that one pixel of the thumbnail covers. */
struct span {
    uint32_t first;        /* partly covered, by head_weight */
    uint32_t last;         /* partly covered, by tail_weight; not read where that is 0 */
    uint32_t head_weight;
    uint32_t tail_weight;  /* between first and last, each weighs the thumbnail's side */
};

/* Span of pixel `index` when `from` pixels become `to`, which is not more. */
static struct span span_of(uint32_t index, uint32_t from, uint32_t to)
{
    uint64_t begin = (uint64_t)index * from;
    uint64_t end = begin + from;
    struct span span = {
        .first = (uint32_t)(begin / to),
        .last = (uint32_t)(end / to),
        .head_weight = (uint32_t)(to - begin % to),
        .tail_weight = (uint32_t)(end % to),
    };
    return span;
}

/* The next character of a header, a comment counting as the end of its line; -1 at the end. */
static int next_character(struct reader *reader)
{
    if (reader->next == reader->end)
        return -1;
    int character = *reader->next++;
    if (character == '#') {
        do {
            if (reader->next == reader->end)
                return -1;
            character = *reader->next++;
        } while (character != '\n' && character != '\r');
    }
    return character;
}

static int is_space(int character)
{
    return character == ' ' || (character >= '\t' && character <= '\r');
}

/* Reads a number and the one character after it, which must be white space.
 * Returns -1 where there is none; stays at a value past all limits once there. */
static int64_t next_number(struct reader *reader)
{
    int character = next_character(reader);
    while (is_space(character))
        character = next_character(reader);
    if (character < '0' || character > '9')
        return -1;
    int64_t number = 0;
    for (; character >= '0' && character <= '9'; character = next_character(reader)) {
        if (number <= UINT32_MAX)
            number = 10 * number + (character - '0');
    }
    return is_space(character) ? number : -1;
}

/* sums[i] = the bytes i of `rows` rows, added up: four rows at a time, for 4 * 255
 * fits 16 bits, and adding those is what vector units do fastest. */
static void add_rows(uint32_t *restrict sums, const uint8_t *restrict row, size_t row_bytes,
                     uint32_t rows)
{
    memset(sums, 0, row_bytes * sizeof *sums);
    for (; rows >= 4; rows -= 4, row += 4 * row_bytes) {
        const uint8_t *second = row + row_bytes;
        const uint8_t *third = second + row_bytes;
        const uint8_t *fourth = third + row_bytes;
        for (size_t i = 0; i < row_bytes; i++)
            sums[i] += (uint16_t)(row[i] + second[i] + third[i] + fourth[i]);
    }
    for (; rows > 0; rows--, row += row_bytes) {
        for (size_t i = 0; i < row_bytes; i++)
            sums[i] += row[i];
    }
}

/* Shrinks `pixels`, width times height, into `out`, to_width times to_height;
 * `sums` has room for one row of the picture. */
static void shrink(uint8_t *restrict out, uint32_t to_width, uint32_t to_height,
                   const uint8_t *restrict pixels, uint32_t width, uint32_t height,
                   uint32_t *restrict sums)
{
    const size_t row_bytes = (size_t)width * CHANNELS;
    const double area = (double)width * height;
    struct span columns[THUMBNAIL_SIDE];
    for (uint32_t x = 0; x < to_width; x++)
        columns[x] = span_of(x, width, to_width);

    for (uint32_t y = 0; y < to_height; y++) {
        const struct span rows = span_of(y, height, to_height);
        const uint8_t *head = pixels + rows.first * row_bytes;
        const uint8_t *tail = pixels + rows.last * row_bytes;
        add_rows(sums, head + row_bytes, row_bytes, rows.last - rows.first - 1);
        for (size_t i = 0; i < row_bytes; i++)
            sums[i] = sums[i] * to_height + head[i] * rows.head_weight;
        if (rows.tail_weight > 0) {
            for (size_t i = 0; i < row_bytes; i++)
                sums[i] += tail[i] * rows.tail_weight;
        }

        for (uint32_t x = 0; x < to_width; x++) {
            const struct span *span = &columns[x];
            for (uint32_t channel = 0; channel < CHANNELS; channel++) {
                const uint32_t *sum = sums + channel;
                uint64_t whole = 0;
                for (uint32_t i = span->first + 1; i < span->last; i++)
                    whole += sum[(size_t)i * CHANNELS];
                uint64_t total = whole * to_width;
                total += (uint64_t)sum[(size_t)span->first * CHANNELS] * span->head_weight;
                if (span->tail_weight > 0)
                    total += (uint64_t)sum[(size_t)span->last * CHANNELS] * span->tail_weight;
                /* Exact: total < 2^40, and a quotient that is not halfway between two
                 * integers is off it by 1 / (2 area) > 2^-33, where a double errs by 2^-45. */
                *out++ = (uint8_t)((double)total / area + 0.5);
            }
        }
    }
}

/* The shorter side of the thumbnail: in proportion, rounded to nearest, at least 1. */
static uint32_t proportional(uint32_t side, uint32_t longer)
{
    uint32_t scaled = (2 * THUMBNAIL_SIDE * side + longer) / (2 * longer);
    return scaled > 0 ? scaled : 1;
}

static int32_t fail_magic(rfaas_call *call)
{
    const uint8_t *bytes = call->args;
    if (call->size < 2)
        return rfaas_fail(call, NOT_A_PPM, "not a binary PPM picture (P6): the input has %u bytes",
                          call->size);
    return rfaas_fail(call, NOT_A_PPM,
                      "not a binary PPM picture (P6): the input begins with bytes %02x %02x",
                      bytes[0], bytes[1]);
}

RFAAS_FUNCTION(thumbnail)
{
    const uint8_t *input = call->args;
    if (call->size < 2 || input[0] != 'P' || input[1] != '6')
        return fail_magic(call);

    struct reader reader = {.next = input + 2, .end = input + call->size};
    static const char *const names[] = {"width", "height", "maxval"};
    int64_t numbers[3];
    for (int i = 0; i < 3; i++) {
        numbers[i] = next_number(&reader);
        if (numbers[i] < 0)
            return rfaas_fail(call, NOT_A_PPM,
                              "not a binary PPM picture: its header has no valid %s", names[i]);
    }
    if (numbers[0] == 0 || numbers[1] == 0)
        return rfaas_fail(call, EMPTY, "the picture is empty: %lld x %lld pixels",
                          (long long)numbers[0], (long long)numbers[1]);
    if (numbers[0] > PICTURE_SIDE_MAX || numbers[1] > PICTURE_SIDE_MAX)
        return rfaas_fail(call, TOO_LARGE,
                          "the picture's %s is too large: at most %d pixels are allowed",
                          names[numbers[0] <= PICTURE_SIDE_MAX], PICTURE_SIDE_MAX);
    if (numbers[2] != MAXVAL)
        return rfaas_fail(call, UNSUPPORTED_MAXVAL,
                          "the picture's maxval is not %d: one byte per channel is supported",
                          MAXVAL);

    const uint32_t width = (uint32_t)numbers[0];
    const uint32_t height = (uint32_t)numbers[1];
    const size_t row_bytes = (size_t)width * CHANNELS;
    const size_t pixel_bytes = row_bytes * height; /* < 3 * 2^32 */
    const size_t available = (size_t)(reader.end - reader.next);
    if (available < pixel_bytes)
        return rfaas_fail(call, TRUNCATED,
                          "the picture is truncated: %u x %u pixels are %zu bytes, %zu are missing",
                          width, height, pixel_bytes, pixel_bytes - available);

    const uint32_t longer = width > height ? width : height;
    const int as_it_is = longer <= THUMBNAIL_SIDE;
    const uint32_t to_width = as_it_is ? width : proportional(width, longer);
    const uint32_t to_height = as_it_is ? height : proportional(height, longer);
    const size_t result_pixel_bytes = (size_t)to_width * to_height * CHANNELS;
    char header[32];
    const int header_bytes =
        snprintf(header, sizeof header, "P6\n%u %u\n%d\n", to_width, to_height, MAXVAL);
    const size_t result_bytes = (size_t)header_bytes + result_pixel_bytes;
    if (result_bytes > call->capacity)
        return rfaas_fail(call, RESULT_TOO_LARGE,
                          "the thumbnail, %zu bytes, does not fit into the output, %u bytes",
                          result_bytes, call->capacity);

    uint8_t *out = (uint8_t *)call->res + header_bytes;
    if (as_it_is) {
        memcpy(out, reader.next, pixel_bytes);
    } else {
        uint32_t *sums = malloc(row_bytes * sizeof *sums);
        if (sums == NULL)
            return rfaas_fail(call, NO_MEMORY, "no memory for a row of %u pixels", width);
        shrink(out, to_width, to_height, reader.next, width, height, sums);
        free(sums);
    }
    memcpy(call->res, header, (size_t)header_bytes);
    call->result_size = (uint32_t)result_bytes;
    return 0;
}
