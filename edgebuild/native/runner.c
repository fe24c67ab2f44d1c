/* Runs a bundle on a device without Python: golden outputs, latency, memory.
 *
 *     ./runner               replay the golden inputs and compare the outputs
 *     ./runner bench         latency, memory and load time; [SECONDS [COUNT [raw]]] follow
 *
 * It reads spec.txt in its own folder and loads the runtime's library that stands there. Every
 * command prints one JSON object like run.py, with its exit codes: 0 right, 1 golden outputs
 * differ, 2 a file that cannot be used, 4 the runtime is missing or fails; a reason in one line.
 *
 * It is linked to the C library alone, but dynamically: a static program that loads a library
 * needs at run time the very C library that it was linked with, and both runtimes bring libstdc++,
 * which needs a shared one in any case. What it asks of the C library is old (with zig: glibc 2.17),
 * so the runtime decides how old a system may be.
 */
#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "runner.h"

enum { WARM_UP_RUNS = 10, MOST_SAMPLES = 10000, MOST_ROWS = 8 };
/* A model of seconds must not take an hour: fewer runs then, and so wider bounds. */
static const double WARM_UP_SECONDS = 0.3, MOST_SECONDS = 120.0;

typedef struct {
    int count, rows;
    Tensor tensors[MOST_TENSORS];
} Arrays;

typedef struct {
    double peak, now, anonymous;
} Memory;

static int check(const Spec *spec);
static int bench(const Spec *spec, double seconds, size_t count, int is_raw);
static Session *opened(const Spec *spec);
static Arrays arrays_of(const Spec *spec, const char *kind);
static void feed(Session *session, const Spec *spec, const Arrays *inputs, int row);
static double relative_error(const Tensor *wanted, int row, const Tensor *got);
static char *folder_of_this_program(void);

int main(int count, char **words)
{
    Spec spec = read_spec(folder_of_this_program());
    int cores = (int)sysconf(_SC_NPROCESSORS_ONLN);
    spec.threads = spec.threads > cores ? cores : spec.threads;
    const char *command = count > 1 ? words[1] : "check";
    if (strcmp(command, "check") == 0)
        return check(&spec);
    if (strcmp(command, "bench") == 0)
        return bench(&spec, count > 2 ? atof(words[2]) : 5.0,
                     count > 3 ? (size_t)atoll(words[3]) : 1024,
                     count > 4 && strcmp(words[4], "raw") == 0);
    fail(BAD_INPUT, "%s is no command: check, bench [SECONDS [COUNT [raw]]]", command);
}

static char *folder_of_this_program(void)
{
    static char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length < 0)
        fail(BAD_INPUT, "/proc is not mounted");
    path[length] = '\0';
    *strrchr(path, '/') = '\0';
    return path;
}

/* ---- golden outputs */

static int check(const Spec *spec)
{
    Session *session = opened(spec);
    Arrays inputs = arrays_of(spec, "input"), outputs = arrays_of(spec, "output");
    double worst = 0.0;
    if (outputs.count != spec->output_count)
        fail(BAD_INPUT, "%d golden outputs, %d of the model", outputs.count, spec->output_count);
    if (outputs.rows < inputs.rows)
        fail(BAD_INPUT, "%d golden outputs for %d inputs", outputs.rows, inputs.rows);
    for (int row = 0; row < inputs.rows; row++) {
        feed(session, spec, &inputs, row);
        session->run(session);
        for (int index = 0; index < outputs.count; index++)
            worst = fmax(worst, relative_error(&outputs.tensors[index], row,
                                               &session->outputs[index]));
    }
    int is_right = worst <= spec->limit;
    if (isinf(worst))
        printf("{\"relative_error\": Infinity");
    else
        printf("{\"relative_error\": %.17g", worst);
    printf(", \"limit\": %.17g, \"ok\": %s, \"runtime\": \"%s\"}\n", spec->limit,
           is_right ? "true" : "false", session->runtime);
    return is_right ? 0 : 1;
}

/* The largest difference over the largest magnitude; infinite for NaN or another shape. */
static double relative_error(const Tensor *wanted, int row, const Tensor *got)
{
    size_t count = count_of(wanted) / (size_t)wanted->shape[0];
    double difference = 0.0, magnitude = 1e-12;
    if (count_of(got) != count || got->rank != wanted->rank)
        return INFINITY;
    for (int axis = 1; axis < got->rank; axis++)
        if (got->shape[axis] != wanted->shape[axis])
            return INFINITY;
    for (size_t index = 0; index < count; index++) {
        double right = value_at(wanted, (size_t)row * count + index), is = value_at(got, index);
        if (!isfinite(right) || !isfinite(is))
            return INFINITY;
        difference = fmax(difference, fabs(right - is));
        magnitude = fmax(magnitude, fabs(right));
    }
    return difference / magnitude;
}

static Session *opened(const Spec *spec)
{
    Session *session = allocated(sizeof(Session));
    if (access(spec->model, R_OK) != 0)
        fail(BAD_RUNTIME, "there is no model file %s", spec->model);
    if (strcmp(spec->format, "onnx") == 0)
        open_onnxruntime(session, spec);
    else if (strcmp(spec->format, "tflite") == 0)
        open_litert(session, spec);
    else
        fail(BAD_INPUT, "spec.txt is of a format %s", spec->format);
    return session;
}

/* The arrays kind-0.npy, kind-1.npy ... of the golden folder, in order. */
static Arrays arrays_of(const Spec *spec, const char *kind)
{
    Arrays found = {0};
    for (; found.count < MOST_TENSORS; found.count++) {
        char name[32];
        Tensor *tensor = &found.tensors[found.count];
        snprintf(name, sizeof name, "%s-%d.npy", kind, found.count);
        if (!read_npy(joined(spec->golden, name), tensor))
            break;
        if (tensor->rank == 0 || tensor->shape[0] == 0)
            fail(BAD_INPUT, "%s/%s holds no sample", spec->golden, name);
        int rows = (int)tensor->shape[0];
        found.rows = found.count == 0 || rows < found.rows ? rows : found.rows;
    }
    if (found.count == 0)
        fail(BAD_INPUT, "%s holds no %s-0.npy", spec->golden, kind);
    return found;
}

/* Writes one sample into the session's inputs, in the number types that the model takes. */
static void feed(Session *session, const Spec *spec, const Arrays *inputs, int row)
{
    if (inputs->count != spec->input_count)
        fail(BAD_INPUT, "the model takes %d inputs, not %d", spec->input_count, inputs->count);
    for (int index = 0; index < inputs->count; index++) {
        const Tensor *from = &inputs->tensors[index];
        Tensor *to = &session->inputs[index];
        size_t count = count_of(from) / (size_t)from->shape[0];
        if (count != count_of(to))
            fail(BAD_INPUT, "input %d of the model has %zu values, not %zu", index, count_of(to),
                 count);
        for (size_t place = 0; place < count; place++)
            set_value(to, place, value_at(from, (size_t)row * count + place));
    }
}

/* ---- latency and memory */

static double now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* Bytes by kind from /proc/self/status; the peak starts anew where we may let it. */
static Memory memory(void)
{
    Memory found = {0};
    char line[256];
    double amount;
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "VmHWM: %lf", &amount) == 1)
            found.peak = amount * 1024;
        if (sscanf(line, "VmRSS: %lf", &amount) == 1)
            found.now = amount * 1024;
        if (sscanf(line, "RssAnon: %lf", &amount) == 1)
            found.anonymous = amount * 1024;
    }
    if (file != NULL)
        fclose(file);
    return found;
}

static void reset_peak(void)
{
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (file != NULL) {
        fputs("5", file);
        fclose(file);
    }
}

static void warm_up(Session *session)
{
    double started = now(CLOCK_MONOTONIC);
    for (int runs = 0;
         runs < WARM_UP_RUNS || now(CLOCK_MONOTONIC) - started < WARM_UP_SECONDS; runs++)
        session->run(session);
}

/* Whether a measurement needs more runs: few of a fast model, or in time of a slow one. */
static int goes_on(size_t done, double elapsed, size_t count, double seconds)
{
    if (done >= MOST_SAMPLES || (done >= 1 && elapsed >= fmax(seconds, MOST_SECONDS)))
        return 0;
    return done < count || elapsed < seconds;
}

static int ascending(const void *left, const void *right)
{
    double one = *(const double *)left, other = *(const double *)right;
    return (one > other) - (one < other);
}

static void print_latencies(double *latencies, size_t runs, int is_raw)
{
    printf("{\"latencies\": ");
    if (is_raw) {
        for (size_t index = 0; index < runs; index++)
            printf("%s%.9g", index == 0 ? "[" : ", ", latencies[index]);
        printf("]");
        return;
    }
    qsort(latencies, runs, sizeof *latencies, ascending);
    printf("{\"p50\": %.9g, \"p90\": %.9g, \"p99\": %.9g, \"runs\": %zu}",
           latencies[runs * 50 / 100], latencies[runs * 90 / 100], latencies[runs * 99 / 100],
           runs);
}

/* The processor's name, as well as this system knows it, without what JSON would trip over. */
static const char *machine(void)
{
    static char line[256];
    static struct utsname system;
    char *found = NULL;
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file != NULL && found == NULL && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, "model name", 10) == 0 || strncmp(line, "Model", 5) == 0)
            found = strchr(line, ':');
    if (file != NULL)
        fclose(file);
    uname(&system);
    if (found == NULL)
        return system.machine;
    found += 1 + strspn(found + 1, " \t");
    for (char *at = found; *at != '\0'; at++)
        if (*at == '"' || *at == '\\' || *at < ' ')
            *at = '\0';
    return found;
}

static int bench(const Spec *spec, double seconds, size_t count, int is_raw)
{
    Arrays inputs = arrays_of(spec, "input");
    double *latencies = allocated(MOST_SAMPLES * sizeof(double));
    reset_peak();
    Memory before = memory();
    double started = now(CLOCK_MONOTONIC);
    Session *session = opened(spec);
    feed(session, spec, &inputs, 0);
    session->run(session);
    double load = now(CLOCK_MONOTONIC) - started;
    warm_up(session);
    double began = now(CLOCK_MONOTONIC), worked = now(CLOCK_PROCESS_CPUTIME_ID);
    size_t runs = 0;
    for (; goes_on(runs, now(CLOCK_MONOTONIC) - began, count, seconds); runs++) {
        feed(session, spec, &inputs, (int)runs % (inputs.rows < MOST_ROWS ? inputs.rows : MOST_ROWS));
        started = now(CLOCK_MONOTONIC);
        session->run(session);
        latencies[runs] = now(CLOCK_MONOTONIC) - started;
    }
    double wall = now(CLOCK_MONOTONIC) - began, cpu = now(CLOCK_PROCESS_CPUTIME_ID) - worked;
    Memory after = memory();
    time_t today = time(NULL);
    char taken_at[32];
    strftime(taken_at, sizeof taken_at, "%Y-%m-%dT%H:%M:%S+00:00", gmtime(&today));
    print_latencies(latencies, runs, is_raw);
    printf(", \"load\": %.9g, \"peak_memory\": %.0f, \"peak_anonymous\": %.0f, "
           "\"baseline_memory\": %.0f, \"cpu_share\": %.4g, \"threads\": %d, \"runtime\": \"%s\", "
           "\"machine\": \"%s\", \"taken_at\": \"%s\"}\n",
           load, fmax(after.peak - before.now, 0), fmax(after.anonymous - before.anonymous, 0),
           before.now, cpu / wall, spec->threads, session->runtime, machine(), taken_at);
    return 0;
}

/* ---- what the other files need */

void *load_library(const Spec *spec)
{
    void *library = dlopen(spec->library, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        fail(BAD_RUNTIME, "the runtime is missing: %s", dlerror());
    return library;
}

void *symbol(void *library, const char *name)
{
    void *found = dlsym(library, name);
    if (found == NULL)
        fail(BAD_RUNTIME, "the runtime is of another release: it has no %s", name);
    return found;
}

/* Zeroed, and never given back: the program is short. */
void *allocated(size_t size)
{
    void *memory = calloc(1, size + 1);
    if (memory == NULL)
        fail(BAD_RUNTIME, "no memory for %zu bytes", size);
    return memory;
}

_Noreturn void fail(int code, const char *format, ...)
{
    va_list details;
    va_start(details, format);
    vfprintf(stderr, format, details);
    va_end(details);
    fputc('\n', stderr);
    exit(code);
}
