/* What the runner's files share: tensors, what a bundle says, and a session of a runtime. */
#ifndef EDGEBUILD_RUNNER_H
#define EDGEBUILD_RUNNER_H

#include <stddef.h>
#include <stdint.h>

enum { MOST_TENSORS = 32, MOST_DIMENSIONS = 8, MOST_SETTINGS = 16 };

/* As in run.py: an input or file that cannot be used; a runtime that is missing or fails. */
enum { BAD_INPUT = 2, BAD_RUNTIME = 4 };

typedef enum { NONE, F32, F64, I8, U8, I16, U16, I32, U32, I64, U64, BOOL } Type;

typedef struct {
    Type type;
    int rank;
    int64_t shape[MOST_DIMENSIONS];
    void *data;
} Tensor;

/* spec.txt: what run.py reads from the manifest, one fact a line. */
typedef struct {
    char *folder, *format, *library, *runtime, *model, *golden;
    int threads;
    double limit;
    int input_count, output_count, setting_count;
    char *inputs[MOST_TENSORS], *outputs[MOST_TENSORS];
    char *setting_keys[MOST_SETTINGS], *setting_values[MOST_SETTINGS];
} Spec;

/* Inputs are written into `inputs`, whose memory is the session's; after `run`, `outputs` holds. */
typedef struct Session {
    char runtime[64];
    Tensor inputs[MOST_TENSORS], outputs[MOST_TENSORS];
    void (*run)(struct Session *);
    void *own;
} Session;

void open_onnxruntime(Session *session, const Spec *spec);
void open_litert(Session *session, const Spec *spec);

Spec read_spec(const char *folder);
/* False where there is no such file. */
int read_npy(const char *path, Tensor *tensor);
char *joined(const char *folder, const char *name);

size_t size_of(Type type);
size_t count_of(const Tensor *tensor);
double value_at(const Tensor *tensor, size_t index);
void set_value(Tensor *tensor, size_t index, double value);

void *load_library(const Spec *spec);
void *symbol(void *library, const char *name);
void *allocated(size_t size);
/* Says why in one line, and ends the program. */
_Noreturn void fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
