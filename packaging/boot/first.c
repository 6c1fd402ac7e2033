/* What the binary does before PyInstaller's loader: looks at its file, finds a place to unpack.
 *
 * Linked into the loader as a constructor.  A file that was cut off or altered says so
 * here, before anything of it is used.  The loader itself would unpack into the first
 * directory that it can write to, and fail later where that is mounted noexec or is full.
 *
 * build_binary.py puts 16 bytes behind what PyInstaller made: "RFAASCRC", the CRC-32 of
 * all before them, and the size of what is unpacked, in bytes.  Where they are says the
 * footer of rfaas/launch/embedded.py: `base`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <zlib.h>

enum {
    FOOTER_BYTES = 112, /* rfaas/launch/embedded.py */
    CHECK_BYTES = 16,
    READ_BYTES = 1 << 18,
    EX_DATAERR = 65,
    EX_OSERR = 71,
};

/* Room that is left beside what is unpacked: other programs start meanwhile. */
#define SPARE_BYTES (1 << 20)

/* Says what TMPDIR was before, to boot/binary.py: "=" and the value, or "". */
#define TMPDIR_BEFORE "_RFAAS_TMPDIR"

static void damaged(const char *path, const char *how)
{
    dprintf(2, "rfaas: %s is damaged: %s\nhint: copy it again; `sha256sum` on both machines tells "
               "whether two copies are the same\n", path, how);
    _exit(EX_DATAERR);
}

/* The program's file, opened; `path` gets its name: PATH_MAX bytes.  -1: the loader says why. */
static int open_self(const char *argv0, char *path)
{
    ssize_t size = readlink("/proc/self/exe", path, PATH_MAX - 1);
    if (size > 0) {
        path[size] = 0;
        if (strncmp(path + size - 5, "ld.so", 5) != 0 && !strstr(path, "/ld-linux"))
            return open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    }
    if (!strchr(argv0, '/') || !realpath(argv0, path))
        return -1;
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* Ends the process unless the file is what was built; returns how much it unpacks, in bytes. */
static uint32_t check(int fd, const char *path)
{
    unsigned char footer[FOOTER_BYTES], check[CHECK_BYTES];
    static unsigned char data[READ_BYTES];
    struct stat found;
    char text[96];
    if (fstat(fd, &found) != 0)
        return 0;
    snprintf(text, sizeof text, "its end is missing, it has %lld bytes", (long long)found.st_size);
    if (found.st_size < FOOTER_BYTES + CHECK_BYTES ||
        pread(fd, footer, FOOTER_BYTES, found.st_size - FOOTER_BYTES) != FOOTER_BYTES ||
        memcmp(footer + FOOTER_BYTES - 8, "RFAASONE", 8) != 0)
        damaged(path, text);
    uint64_t base;
    memcpy(&base, footer, sizeof base);
    if (base < CHECK_BYTES || base > (uint64_t)found.st_size - FOOTER_BYTES ||
        pread(fd, check, CHECK_BYTES, (off_t)base - CHECK_BYTES) != CHECK_BYTES ||
        memcmp(check, "RFAASCRC", 8) != 0)
        damaged(path, "it was cut off or altered");
    uint32_t wanted, unpacked;
    memcpy(&wanted, check + 8, sizeof wanted);
    memcpy(&unpacked, check + 12, sizeof unpacked);
    uLong sum = crc32(0, NULL, 0);
    for (uint64_t at = 0, end = base - CHECK_BYTES; at < end;) {
        size_t most = end - at < READ_BYTES ? (size_t)(end - at) : READ_BYTES;
        ssize_t size = pread(fd, data, most, (off_t)at);
        if (size <= 0)
            damaged(path, "it cannot be read");
        sum = crc32(sum, data, (uInt)size);
        at += (uint64_t)size;
    }
    if (sum != wanted)
        damaged(path, "it was cut off or altered");
    return unpacked;
}

/* NULL where `size` bytes can be unpacked and run in the directory; otherwise why not. */
static const char *fault_of(const char *directory, uint32_t size)
{
    struct statvfs found;
    if (statvfs(directory, &found) != 0)
        return strerror(errno);
    if (found.f_flag & ST_NOEXEC)
        return "mounted noexec";
    if (access(directory, W_OK | X_OK) != 0)
        return strerror(errno);
    if ((uint64_t)found.f_bavail * found.f_frsize < (uint64_t)size + SPARE_BYTES)
        return "full";
    return NULL;
}

static void choose_directory(uint32_t size)
{
    const char *wanted[] = {
        getenv("TMPDIR"), getenv("TEMP"), getenv("TMP"), "/tmp", "/var/tmp",
        getenv("XDG_RUNTIME_DIR"), "/dev/shm", getenv("HOME"),
    };
    enum { COUNT = sizeof wanted / sizeof *wanted };
    const char *faults[COUNT] = {0};
    const char *before = getenv("TMPDIR");
    for (int i = 0; i < COUNT; i++) {
        if (!wanted[i] || wanted[i][0] != '/')
            continue;
        faults[i] = fault_of(wanted[i], size);
        if (faults[i])
            continue;
        char kept[PATH_MAX + 1] = "";
        if (before)
            snprintf(kept, sizeof kept, "=%s", before);
        setenv(TMPDIR_BEFORE, kept, 1);
        setenv("TMPDIR", wanted[i], 1);
        return;
    }
    dprintf(2, "rfaas: no directory to unpack %u MB in, from which programs may be run:\n",
            size / 1000000 + 1);
    for (int i = 0; i < COUNT; i++)
        if (faults[i])
            dprintf(2, "  %s: %s\n", wanted[i], faults[i]);
    dprintf(2, "hint: set TMPDIR to a directory of your own that is not mounted noexec, or use the "
               "zipapp, which unpacks nothing\n");
    _exit(EX_OSERR);
}

__attribute__((constructor)) static void first(int argc, char **argv)
{
    static char path[PATH_MAX];
    (void)argc;
    int fd = open_self(argv[0], path);
    if (fd < 0)
        return;
    /* The program itself and what it starts share what this process's parent has unpacked. */
    const char *of_parent = getenv("_PYI_ARCHIVE_FILE");
    const char *unpacked = getenv("_PYI_APPLICATION_HOME_DIR");
    if (!of_parent || !unpacked || strcmp(of_parent, path) != 0)
        choose_directory(check(fd, path));
    close(fd);
}
