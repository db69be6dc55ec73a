/* An app that is not Python: it loads libpython at run time, as PythonKit does, and embeds.
 *
 * host LIBPYTHON MODEL PHOTO PIXELS HEIGHT WIDTH CALLS END REPORT
 *
 * PHOTO is an image file and PIXELS its raw RGB. END is "finalize" to end the interpreter first, or
 * "leave" to end as PythonKit does, which never does so. What was seen goes into REPORT, a line for
 * each; the program writes nothing else. It ends with 0 where every call did what it should.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct object Object;

static Object *(*import_module)(const char *);
static Object *(*attribute)(Object *, const char *);
static Object *(*call)(Object *, Object *);
static Object *(*build)(const char *, ...);
static Object *(*of_dict)(Object *, const char *);
static Object *(*of_sequence)(Object *, ssize_t);
static ssize_t (*length)(Object *);
static int (*is_true)(Object *);
static long (*to_long)(Object *);
static void *(*to_pointer)(Object *);
static const char *(*to_text)(Object *);
static Object *(*raised)(void);
static void (*forget)(Object *);
static int (*set_sys)(const char *, Object *);
static int (*lock)(void);
static void (*unlock)(int);
static void *(*let_go)(void);
static void (*take_back)(void *);

static FILE *report;
static Object *embedder, *none;
static char *photo, *pixels;
static long photo_size, pixels_size, height, width;

static void check(int good, const char *what)
{
    if (good)
        return;
    fprintf(report, "failed: %s\n", what);
    fclose(report);
    _exit(1);
}

static char *read_file(const char *path, long *size)
{
    FILE *file = fopen(path, "rb");
    check(file != NULL, path);
    fseek(file, 0, SEEK_END);
    *size = ftell(file);
    rewind(file);
    char *data = malloc(*size);
    check(fread(data, 1, *size, file) == (size_t)*size, path);
    fclose(file);
    return data;
}

static long resident_kb(void)
{
    long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    check(file && fscanf(file, "%ld %ld", &pages, &resident) == 2, "statm");
    fclose(file);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

static int threads(void)
{
    int count = -2; /* . and .. */
    DIR *folder = opendir("/proc/self/task");
    while (readdir(folder))
        count++;
    closedir(folder);
    return count;
}

/* Their number once it stands still: one that has ended may be listed for a moment more. */
static int settled_threads(void)
{
    int count = threads(), before = -1;
    while (count != before) {
        usleep(100000);
        before = count;
        count = threads();
    }
    return count;
}

/* What a method of the embedder returns: a dictionary, whatever it is given. */
static Object *answer(const char *method, Object *arguments)
{
    check(arguments != NULL, "arguments could not be made");
    Object *function = attribute(embedder, method);
    check(function != NULL, method);
    Object *result = call(function, arguments);
    check(result != NULL && !raised(), method);
    forget(function);
    forget(arguments);
    return result;
}

static int is_ok(Object *result)
{
    return is_true(of_dict(result, "ok"));
}

static void check_kind(Object *result, const char *kind)
{
    const char *given = to_text(of_dict(result, "kind"));
    check(!is_ok(result) && !strcmp(given, kind), to_text(of_dict(result, "error")));
    check(strlen(to_text(of_dict(result, "error"))) > 0, "an error without words");
    forget(result);
}

/* The vector of an answer, copied from where __array_interface__ says that it lies. */
static long vector(Object *result, float **values)
{
    check(is_ok(result), to_text(of_dict(result, "error")));
    Object *shape = of_dict(result, "shape"), *array = of_dict(result, "values");
    Object *rows = of_sequence(shape, 0), *columns = of_sequence(shape, 1);
    long count = to_long(rows) * to_long(columns);
    check(count == length(array), "as many values as the shape says");
    Object *interface = attribute(array, "__array_interface__");
    Object *address = of_sequence(of_dict(interface, "data"), 0);
    *values = malloc(count * sizeof(float));
    memcpy(*values, to_pointer(address), count * sizeof(float));
    forget(rows);
    forget(columns);
    forget(address);
    forget(interface);
    forget(result);
    return count;
}

static Object *from_pixels(void)
{
    return answer("embed_rgb", build("(y#ll)", pixels, (ssize_t)pixels_size, height, width));
}

static void embed_from_memory(void)
{
    float *one, *other;
    long count = vector(from_pixels(), &one);
    check(count == vector(answer("embed_bytes", build("(y#)", photo, (ssize_t)photo_size)), &other),
          "vectors of one length");
    check(!memcmp(one, other, count * sizeof(float)), "one vector of a file and of its pixels");
    fprintf(report, "vector:");
    for (long i = 0; i < count; i++)
        fprintf(report, " %.9g", one[i]);
    fprintf(report, "\n");
    free(one);
    free(other);
}

static void survive_bad_input(void)
{
    check_kind(answer("embed_bytes", build("(O)", none)), "usage");
    check_kind(answer("embed_bytes", build("(y#)", "", (ssize_t)0)), "empty");
    check_kind(answer("embed_bytes", build("(y)", "<html>")), "not_image");
    check_kind(answer("embed_bytes", build("(y#)", photo, (ssize_t)(photo_size / 2))), "truncated");
    check_kind(answer("embed_rgb", build("(yll)", "abc", -1L, -1L)), "usage");
    check_kind(answer("embed_rgb", build("(ylO)", "abc", 1L, none)), "usage");
    check_kind(answer("embed_rgb", build("(y#ll)", pixels, (ssize_t)(pixels_size - 1), height, width)),
               "usage");
    check_kind(answer("embed_files", build("(s#)", "a\0b", (ssize_t)3)), "unreadable");
    check_kind(answer("embed_files", build("(i)", 3)), "usage");
    check_kind(answer("embed_text", build("([i])", 3)), "usage");
    check_kind(answer("classify", build("(y#[])", photo, (ssize_t)photo_size)), "usage");
}

/* A thread that Python has never seen asks for its lock before each call, and gives it back. */
static void *other_thread(void *vectors)
{
    int state = lock();
    *(long *)vectors = vector(from_pixels(), &(float *){0});
    unlock(state);
    return NULL;
}

static void *cancel_soon(void *seen)
{
    long done = 0;
    while (!done) {
        usleep(1000);
        int state = lock();
        Object *progress = answer("progress", build("()"));
        done = to_long(of_dict(progress, "done"));
        forget(progress);
        if (done)
            forget(answer("cancel", build("()")));
        unlock(state);
    }
    *(long *)seen = done;
    return NULL;
}

static void call_from_a_second_thread(void)
{
    pthread_t thread;
    long count = 0;
    void *state = let_go(); /* the thread that started Python holds its lock otherwise */
    pthread_create(&thread, NULL, other_thread, &count);
    pthread_join(thread, NULL);
    take_back(state);
    check(count > 0, "a vector in a second thread");
}

static void cancel_from_a_second_thread(const char *path)
{
    pthread_t thread;
    long seen = 0;
    Object *one = build("[s]", path), *many = build("(N)", one);
    Object *repeat = attribute(one, "__imul__"), *times = build("(i)", 20000);
    forget(call(repeat, times));
    pthread_create(&thread, NULL, cancel_soon, &seen);
    Object *result = answer("embed_files", many); /* it lets the other thread run while it waits */
    check_kind(result, "cancelled");
    void *state = let_go();
    pthread_join(thread, NULL);
    take_back(state);
    fprintf(report, "cancelled after: %ld\n", seen);
    forget(repeat);
    forget(times);
}

static void call_again_and_again(long calls)
{
    long steps = calls < 20 ? calls : 20;
    fprintf(report, "threads before: %d\nresident kB:", settled_threads());
    for (long step = 0; step < steps; step++) {
        for (long i = 0; i < calls / steps; i++) {
            Object *result = from_pixels();
            check(is_ok(result), "a vector each time");
            forget(result);
        }
        fprintf(report, " %ld", resident_kb());
    }
    fprintf(report, "\nthreads after: %d\n", settled_threads());
}

#define FIND(function, name)                     \
    *(void **)&function = dlsym(python, #name); \
    check(function != NULL, #name)

static void find_functions(void *python)
{
    FIND(import_module, PyImport_ImportModule);
    FIND(attribute, PyObject_GetAttrString);
    FIND(call, PyObject_CallObject);
    FIND(build, _Py_BuildValue_SizeT);
    FIND(of_dict, PyDict_GetItemString);
    FIND(of_sequence, PySequence_GetItem);
    FIND(length, PyObject_Size);
    FIND(is_true, PyObject_IsTrue);
    FIND(to_long, PyLong_AsLong);
    FIND(to_pointer, PyLong_AsVoidPtr);
    FIND(to_text, PyUnicode_AsUTF8);
    FIND(raised, PyErr_Occurred);
    FIND(forget, Py_DecRef);
    FIND(set_sys, PySys_SetObject);
    FIND(lock, PyGILState_Ensure);
    FIND(unlock, PyGILState_Release);
    FIND(let_go, PyEval_SaveThread);
    FIND(take_back, PyEval_RestoreThread);
    FIND(none, _Py_NoneStruct);
}

int main(int count, char **arguments)
{
    if (count != 10)
        return 2;
    report = fopen(arguments[9], "w");
    void *python = dlopen(arguments[1], RTLD_NOW | RTLD_GLOBAL);
    check(python != NULL, "libpython");
    find_functions(python);
    void (*initialize)(int) = (void (*)(int))dlsym(python, "Py_InitializeEx");
    int (*finalize)(void) = (int (*)(void))dlsym(python, "Py_FinalizeEx");
    const char *(*version)(void) = (const char *(*)(void))dlsym(python, "Py_GetVersion");
    photo = read_file(arguments[3], &photo_size);
    pixels = read_file(arguments[4], &pixels_size);
    height = atol(arguments[5]);
    width = atol(arguments[6]);

    initialize(0); /* without Python's signal handlers */
    fprintf(report, "version: %s\n", version());
    set_sys("stdout", none);
    set_sys("stderr", none);
    Object *bridge = import_module("aim_mlx.bridge");
    check(bridge != NULL, "import aim_mlx.bridge");
    Object *class = attribute(bridge, "Embedder"), *model = build("(s)", arguments[2]);
    embedder = call(class, model);
    check(embedder != NULL, "Embedder");
    Object *prepared = answer("prepare", build("()"));
    check(is_ok(prepared), to_text(of_dict(prepared, "error")));

    embed_from_memory();
    survive_bad_input();
    call_from_a_second_thread();
    cancel_from_a_second_thread(arguments[3]);
    call_again_and_again(atol(arguments[7]));
    Object *released = answer("release", build("()"));
    check(is_ok(released), to_text(of_dict(released, "error")));

    struct sigaction action;
    sigaction(SIGINT, NULL, &action);
    check(action.sa_handler == SIG_DFL, "no handler of SIGINT");
    if (!strcmp(arguments[8], "finalize")) {
        Object *left[] = {prepared, released, embedder, model, class, bridge};
        for (int i = 0; i < 6; i++)
            forget(left[i]);
        check(finalize() == 0, "Py_FinalizeEx");
    }
    fprintf(report, "done\n");
    fclose(report);
    return 0;
}
