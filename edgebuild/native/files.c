/* Reads the files that a bundle brings: its spec, and arrays as numpy saves them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runner.h"

/* So that no product of lengths overflows. */
static const int64_t MOST_VALUES = INT32_MAX;

static void take(Spec *spec, const char *word, char *rest);
static void append(char **list, int *count, int most, char *value);
static void parse_header(const char *path, const char *header, Tensor *tensor);
static Type type_named(const char *path, const char *name);

Spec read_spec(const char *folder)
{
    Spec spec = {.folder = strdup(folder), .threads = 1};
    char *path = joined(folder, "spec.txt"), *line = NULL;
    size_t size = 0;
    FILE *file = fopen(path, "r");
    if (file == NULL)
        fail(BAD_INPUT, "cannot read %s", path);
    while (getline(&line, &size, file) > 0) {
        line[strcspn(line, "\n")] = '\0';
        char *rest = strchr(line, ' ');
        if (rest == NULL)
            continue;
        *rest++ = '\0';
        take(&spec, line, strdup(rest));
    }
    fclose(file);
    if (!spec.format || !spec.library || !spec.runtime || !spec.model || !spec.golden)
        fail(BAD_INPUT, "%s lacks one of format, library, runtime, model, golden", path);
    return spec;
}

static void take(Spec *spec, const char *word, char *rest)
{
    if (strcmp(word, "format") == 0)
        spec->format = rest;
    else if (strcmp(word, "library") == 0)
        spec->library = joined(spec->folder, rest);
    else if (strcmp(word, "runtime") == 0)
        spec->runtime = rest;
    else if (strcmp(word, "model") == 0)
        spec->model = joined(spec->folder, rest);
    else if (strcmp(word, "golden") == 0)
        spec->golden = joined(spec->folder, rest);
    else if (strcmp(word, "threads") == 0)
        spec->threads = atoi(rest);
    else if (strcmp(word, "limit") == 0)
        spec->limit = atof(rest);
    else if (strcmp(word, "input") == 0)
        append(spec->inputs, &spec->input_count, MOST_TENSORS, rest);
    else if (strcmp(word, "output") == 0)
        append(spec->outputs, &spec->output_count, MOST_TENSORS, rest);
    else if (strcmp(word, "setting") == 0 && strchr(rest, ' ') != NULL) {
        char *value = strchr(rest, ' ');
        *value++ = '\0';
        spec->setting_values[spec->setting_count] = value;
        append(spec->setting_keys, &spec->setting_count, MOST_SETTINGS, rest);
    }
    else
        fail(BAD_INPUT, "spec.txt says %s, which this runner does not know", word);
}

static void append(char **list, int *count, int most, char *value)
{
    if (*count == most)
        fail(BAD_INPUT, "spec.txt names more than %d of a kind", most);
    list[(*count)++] = value;
}

/* https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1 to 3. */
int read_npy(const char *path, Tensor *tensor)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return 0;
    unsigned char start[12];
    if (fread(start, 1, 10, file) != 10 || memcmp(start, "\x93NUMPY", 6) != 0)
        fail(BAD_INPUT, "%s is no .npy file", path);
    size_t length = start[8] | (size_t)start[9] << 8;
    if (start[6] > 1) {
        if (fread(start + 10, 1, 2, file) != 2)
            fail(BAD_INPUT, "%s is cut off", path);
        length |= (size_t)start[10] << 16 | (size_t)start[11] << 24;
    }
    char *header = allocated(length + 1);
    if (fread(header, 1, length, file) != length)
        fail(BAD_INPUT, "%s is cut off", path);
    parse_header(path, header, tensor);
    size_t size = count_of(tensor) * size_of(tensor->type);
    tensor->data = allocated(size);
    if (fread(tensor->data, 1, size, file) != size)
        fail(BAD_INPUT, "%s is cut off", path);
    free(header);
    fclose(file);
    return 1;
}

/* {'descr': '<f4', 'fortran_order': False, 'shape': (4, 1, 8, 8), } */
static void parse_header(const char *path, const char *header, Tensor *tensor)
{
    const char *type = strstr(header, "'descr': '"), *shape = strstr(header, "'shape': (");
    if (type == NULL || shape == NULL || strstr(header, "'fortran_order': False") == NULL)
        fail(BAD_INPUT, "%s is no plain array in C order", path);
    tensor->type = type_named(path, type + strlen("'descr': '"));
    tensor->rank = 0;
    int64_t count = 1;
    char *at = (char *)shape + strlen("'shape': (");
    while (*at != ')' && *at != '\0') {
        if (tensor->rank == MOST_DIMENSIONS)
            fail(BAD_INPUT, "%s has more than %d dimensions", path, MOST_DIMENSIONS);
        int64_t length = strtoll(at, &at, 10);
        if (length < 0 || (length > 0 && MOST_VALUES / length < count))
            fail(BAD_INPUT, "%s is larger than any sample", path);
        tensor->shape[tensor->rank++] = length;
        count *= length;
        at += strspn(at, ", ");
    }
}

static Type type_named(const char *path, const char *name)
{
    static const struct { const char *name; Type type; } known[] = {
        {"<f4", F32}, {"<f8", F64}, {"|i1", I8},  {"|u1", U8},  {"<i2", I16}, {"<u2", U16},
        {"<i4", I32}, {"<u4", U32}, {"<i8", I64}, {"<u8", U64}, {"|b1", BOOL},
    };
    for (size_t index = 0; index < sizeof known / sizeof *known; index++)
        if (strncmp(name, known[index].name, 3) == 0)
            return known[index].type;
    fail(BAD_INPUT, "%s holds numbers of type %.3s, which this runner does not know", path, name);
}

char *joined(const char *folder, const char *name)
{
    char *path = allocated(strlen(folder) + strlen(name) + 2);
    sprintf(path, "%s/%s", folder, name);
    return path;
}
