/* A stand-in for NVIDIA's management library, with its ABI: see README.md.
 *
 * Written from the NVML API reference; it offers the calls that llem, pynvml, zeus, codecarbon and
 * perun make. Power is a function of the wall clock, so every process on a machine sees the same
 * GPUs, and the energy between two moments is an exact integral (fake_nvml.py has the same).
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define API __attribute__((visibility("default")))

enum {
    SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7, GPU_IS_LOST = 15
};
enum { FIELD_POWER_AVERAGE = 185, FIELD_POWER_INSTANT = 186, SCOPE_GPU = 0, SCOPE_MODULE = 1 };
enum { MOST_GPUS = 64, MOST_MIG = 7, BURST_SLOTS = 4096, MOST_ROWS = 1 << 20 };

/* A handle is a pointer to one of these; `instance` is -1 for a whole GPU. */
struct device { int gpu; int instance; };
typedef struct device *handle;

static struct {
    int ready, gpus, mig, shown[MOST_GPUS];
    double base_w, amp_w, period_s, duty, step_w, shift_s, module_w, origin_s;
    double reset_s, lost_s, freeze_s;
    double energy_update_s, power_update_s, average_s, instant_s, latency_s;
    int no_energy, no_power, no_field, faulty;
    char name[96], node[64], faults[256];
} fake;
static struct device whole[MOST_GPUS], parts[MOST_GPUS][MOST_MIG];

/* Bursts or a trace: from at_s[i] on watts[i], joules[i] until then; over and over. No rows: the
 * square wave. */
static struct { int rows; double *at_s, *watts, *joules, period_s, period_j; } cycle;

static double number(const char *key, double otherwise) {
    const char *text = getenv(key);
    return text && *text ? atof(text) : otherwise;
}

static void text(char *out, size_t size, const char *key, const char *otherwise) {
    const char *found = getenv(key);
    if (found && *found) snprintf(out, size, "%s", found);
    else if (out != otherwise) snprintf(out, size, "%s", otherwise);
}

static double wall_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void delay(void) {
    if (fake.latency_s > 0) {
        struct timespec t = {(time_t)fake.latency_s, (long)(fmod(fake.latency_s, 1.0) * 1e9)};
        nanosleep(&t, NULL);
    }
}

static double floor_to(double t, double step) { return step > 0 ? floor(t / step) * step : t; }

/* Seconds in the high half of the square wave from the origin to x. */
static double high_s(double x) {
    double whole_periods = floor(x / fake.period_s);
    double rest = x - whole_periods * fake.period_s, high = fake.duty * fake.period_s;
    return whole_periods * high + (rest < high ? rest : high);
}

/* The last row of the cycle that begins at or before x, 0 <= x < period. */
static int row_at(double x) {
    int low = 0, high = cycle.rows;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (cycle.at_s[middle] <= x) low = middle;
        else high = middle;
    }
    return low;
}

/* What varies: watts at, and joules until, x seconds after the origin. */
static double varying_w(double x) {
    if (!cycle.rows) return x / fake.period_s - floor(x / fake.period_s) < fake.duty ? fake.amp_w : 0;
    return cycle.watts[row_at(x - floor(x / cycle.period_s) * cycle.period_s)];
}
static double varying_j(double x) {
    if (!cycle.rows) return fake.amp_w * high_s(x);
    double periods = floor(x / cycle.period_s), rest = x - periods * cycle.period_s;
    int row = row_at(rest);
    return periods * cycle.period_j + cycle.joules[row] + cycle.watts[row] * (rest - cycle.at_s[row]);
}

static double power_w(int gpu, double t) {
    double x = t - fake.origin_s;
    return fake.base_w + gpu * fake.step_w + varying_w(x + gpu * fake.shift_s);
}
static double energy_j(int gpu, double t) {
    double x = t - fake.origin_s, shift_s = gpu * fake.shift_s;
    return (fake.base_w + gpu * fake.step_w) * x + varying_j(x + shift_s) - varying_j(shift_s);
}

static void add_row(double at_s, double watts) {
    int last = cycle.rows - 1;
    cycle.at_s[cycle.rows] = at_s;
    cycle.watts[cycle.rows] = watts;
    cycle.joules[cycle.rows] =
        last < 0 ? 0 : cycle.joules[last] + cycle.watts[last] * (at_s - cycle.at_s[last]);
    cycle.rows++;
}
/* The last row only ends the cycle. */
static void close_cycle(void) {
    cycle.rows--;
    cycle.period_s = cycle.at_s[cycle.rows];
    cycle.period_j = cycle.joules[cycle.rows];
}
static int room_for(int rows) {
    free(cycle.at_s); free(cycle.watts); free(cycle.joules);
    memset(&cycle, 0, sizeof cycle);
    if (!rows) return 1;
    cycle.at_s = calloc((size_t)rows, sizeof(double));
    cycle.watts = calloc((size_t)rows, sizeof(double));
    cycle.joules = calloc((size_t)rows, sizeof(double));
    return cycle.at_s && cycle.watts && cycle.joules;
}

/* A number in [0, 1) from a seed and a place; splitmix64's mixing. */
static double chance(unsigned long long seed, unsigned long long place) {
    unsigned long long z = seed * 0x9e3779b97f4a7c15ull + (place + 1) * 0xd1b54a32d192ed03ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (double)((z ^ (z >> 31)) >> 11) / 9007199254740992.0;
}
static int make_bursts(unsigned long long seed, double slot_s) {
    if (slot_s <= 0 || !room_for(BURST_SLOTS + 1)) return 0;
    for (unsigned k = 0; k < BURST_SLOTS; k++)
        add_row(k * slot_s, chance(seed, 2 * k) < fake.duty ? fake.amp_w * chance(seed, 2 * k + 1) : 0);
    add_row(BURST_SLOTS * slot_s, 0);
    close_cycle();
    return 1;
}
/* Lines `seconds,watts`, rising from 0; others are passed over. */
static int read_trace(const char *path) {
    char line[256];
    double at_s, watts;
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    int good = room_for(MOST_ROWS);
    while (good && fgets(line, sizeof line, file))
        if (sscanf(line, "%lf , %lf", &at_s, &watts) == 2) {
            good = cycle.rows < MOST_ROWS
                && (cycle.rows ? at_s > cycle.at_s[cycle.rows - 1] : at_s == 0);
            if (good) add_row(at_s, watts);
        }
    fclose(file);
    if (!good || cycle.rows < 2) return 0;
    close_cycle();
    return 1;
}

/* Since when a GPU has a fault, 0 if never: told beforehand, or by a file that appears. */
static double fault_s(int gpu, double told_s, const char *name) {
    char path[320];
    struct stat found;
    if (fake.faulty >= 0 && fake.faulty != gpu) return 0;
    if (told_s > 0 || !*fake.faults) return told_s;
    snprintf(path, sizeof path, "%s/%s", fake.faults, name);
    if (stat(path, &found)) return 0;
    return (double)found.st_mtim.tv_sec + 1e-9 * (double)found.st_mtim.tv_nsec;
}

/* The counter: moves every energy_update_s, starts again at reset_s, stands still from freeze_s.
 * Of a module it counts what is beside the GPU too. */
static double counter_j(int gpu, double now) {
    double t = floor_to(now, fake.energy_update_s);
    double freeze_s = fault_s(gpu, fake.freeze_s, "freeze");
    double reset_s = fault_s(gpu, fake.reset_s, "reset");
    if (freeze_s > 0 && t > freeze_s) t = freeze_s;
    double zero = reset_s > 0 && t >= reset_s ? reset_s : fake.origin_s;
    return energy_j(gpu, t) - energy_j(gpu, zero) + fake.module_w * (t - zero);
}

static int check(handle device) {
    delay();
    if (!fake.ready) return UNINITIALIZED;
    if (!device) return INVALID_ARGUMENT;
    double lost_s = fault_s(device->gpu, fake.lost_s, "lost");
    if (lost_s > 0 && wall_s() >= lost_s) return GPU_IS_LOST;
    return SUCCESS;
}

/* For what NVML answers about whole GPUs only. */
static int check_whole(handle device) {
    int status = check(device);
    return status == SUCCESS && device->instance >= 0 ? NOT_SUPPORTED : status;
}

static void uuid_of(const struct device *device, char *out, size_t size) {
    unsigned hash = 2166136261u;
    for (const char *c = fake.node; *c; c++) hash = (hash ^ (unsigned char)*c) * 16777619u;
    if (device->instance < 0)
        snprintf(out, size, "GPU-%08x-fa4e-4e76-9a01-%012x", hash, device->gpu);
    else
        snprintf(out, size, "MIG-%08x-fa4e-4e76-9a02-%08x%04x", hash, device->gpu, device->instance);
}

API int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    memset(&fake, 0, sizeof fake);
    fake.base_w = number("FAKE_NVML_BASE_W", 300);
    fake.amp_w = number("FAKE_NVML_AMP_W", 0);
    fake.period_s = number("FAKE_NVML_PERIOD_S", 1);
    fake.duty = number("FAKE_NVML_DUTY", 0.5);
    fake.step_w = number("FAKE_NVML_STEP_W", 0);
    fake.shift_s = number("FAKE_NVML_SHIFT_S", 0);
    fake.module_w = number("FAKE_NVML_MODULE_W", 0);
    fake.origin_s = number("FAKE_NVML_ORIGIN_S", 1700000000);
    fake.reset_s = number("FAKE_NVML_RESET_AT_S", 0);
    fake.freeze_s = number("FAKE_NVML_FREEZE_AT_S", 0);
    fake.lost_s = number("FAKE_NVML_LOST_AT_S", 0);
    fake.energy_update_s = number("FAKE_NVML_ENERGY_UPDATE_MS", 20) / 1e3;
    fake.power_update_s = number("FAKE_NVML_POWER_UPDATE_MS", 20) / 1e3;
    fake.average_s = number("FAKE_NVML_POWER_WINDOW_MS", 1000) / 1e3;
    fake.instant_s = number("FAKE_NVML_INSTANT_WINDOW_MS", 0) / 1e3;
    fake.latency_s = number("FAKE_NVML_LATENCY_US", 0) / 1e6;
    fake.faulty = (int)number("FAKE_NVML_FAULTY", -1);
    fake.no_energy = (int)number("FAKE_NVML_NO_ENERGY", 0);
    fake.no_power = (int)number("FAKE_NVML_NO_POWER", 0);
    fake.no_field = (int)number("FAKE_NVML_NO_FIELD", 0);
    fake.mig = (int)number("FAKE_NVML_MIG", 0);
    if (fake.mig > MOST_MIG) fake.mig = MOST_MIG;
    text(fake.name, sizeof fake.name, "FAKE_NVML_NAME", "NVIDIA Stand-in 80GB");
    text(fake.faults, sizeof fake.faults, "FAKE_NVML_FAULTS", fake.faults);
    /* Several SLURM nodes on one host must not share GPUs. */
    text(fake.node, sizeof fake.node, "SLURMD_NODENAME", "node");
    text(fake.node, sizeof fake.node, "FAKE_NVML_NODE", fake.node);
    const char *trace = getenv("FAKE_NVML_TRACE");
    double slot_s = number("FAKE_NVML_BURST_S", 0);
    int made = trace && *trace ? read_trace(trace)
             : slot_s > 0 ? make_bursts((unsigned long long)number("FAKE_NVML_SEED", 1), slot_s)
             : room_for(0);
    if (!made) return INVALID_ARGUMENT; /* never another load than the one that was asked for */
    int gpus = (int)number("FAKE_NVML_GPUS", 1);
    if (gpus > MOST_GPUS) gpus = MOST_GPUS;
    for (int i = 0; i < gpus; i++) {
        whole[i] = (struct device){i, -1};
        for (int k = 0; k < MOST_MIG; k++) parts[i][k] = (struct device){i, k};
    }
    /* A device cgroup hides the others and counts from 0 again. */
    const char *visible = getenv("FAKE_NVML_VISIBLE");
    if (visible && *visible) {
        char list[256], *rest = list, *item;
        snprintf(list, sizeof list, "%s", visible);
        while ((item = strsep(&rest, ",")))
            if (*item && atoi(item) >= 0 && atoi(item) < gpus && fake.gpus < MOST_GPUS)
                fake.shown[fake.gpus++] = atoi(item);
    } else {
        for (fake.gpus = 0; fake.gpus < gpus; fake.gpus++) fake.shown[fake.gpus] = fake.gpus;
    }
    fake.ready = 1;
    return SUCCESS;
}
API int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
API int nvmlInit(void) { return nvmlInitWithFlags(0); }
API int nvmlShutdown(void) { fake.ready = 0; return SUCCESS; }

API const char *nvmlErrorString(int status) {
    switch (status) {
    case SUCCESS: return "The operation was successful";
    case UNINITIALIZED: return "NVML was not first initialized with nvmlInit()";
    case INVALID_ARGUMENT: return "A supplied argument is invalid";
    case NOT_SUPPORTED: return "The requested operation is not available on target device";
    case NOT_FOUND: return "A query to find an object was unsuccessful";
    case INSUFFICIENT_SIZE: return "An input argument is not large enough";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown error";
    }
}

static int answer(char *out, unsigned size, const char *value) {
    if (!out) return INVALID_ARGUMENT;
    if (strlen(value) + 1 > size) return INSUFFICIENT_SIZE;
    strcpy(out, value);
    return SUCCESS;
}
API int nvmlSystemGetDriverVersion(char *out, unsigned size) { return answer(out, size, "999.0-fake"); }
API int nvmlSystemGetNVMLVersion(char *out, unsigned size) { return answer(out, size, "13.999.0"); }
API int nvmlSystemGetCudaDriverVersion(int *out) { *out = 13000; return SUCCESS; }
API int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 13000; return SUCCESS; }

API int nvmlDeviceGetCount_v2(unsigned *out) {
    if (!fake.ready) return UNINITIALIZED;
    *out = (unsigned)fake.gpus;
    return SUCCESS;
}
API int nvmlDeviceGetHandleByIndex_v2(unsigned index, handle *out) {
    if (!fake.ready) return UNINITIALIZED;
    if (index >= (unsigned)fake.gpus) return INVALID_ARGUMENT;
    *out = &whole[fake.shown[index]];
    return SUCCESS;
}
API int nvmlDeviceGetHandleByUUID(const char *uuid, handle *out) {
    char candidate[96];
    if (!fake.ready) return UNINITIALIZED;
    for (int i = 0; i < fake.gpus; i++) {
        int gpu = fake.shown[i];
        uuid_of(&whole[gpu], candidate, sizeof candidate);
        if (!strcmp(candidate, uuid)) { *out = &whole[gpu]; return SUCCESS; }
        for (int k = 0; k < fake.mig; k++) {
            uuid_of(&parts[gpu][k], candidate, sizeof candidate);
            if (!strcmp(candidate, uuid)) { *out = &parts[gpu][k]; return SUCCESS; }
        }
    }
    return NOT_FOUND;
}
API int nvmlDeviceGetIndex(handle device, unsigned *out) {
    int status = check_whole(device);
    if (status) return status;
    for (int i = 0; i < fake.gpus; i++)
        if (fake.shown[i] == device->gpu) *out = (unsigned)i;
    return SUCCESS;
}
API int nvmlDeviceGetUUID(handle device, char *out, unsigned size) {
    char uuid[96];
    int status = check(device);
    if (status) return status;
    uuid_of(device, uuid, sizeof uuid);
    return answer(out, size, uuid);
}
API int nvmlDeviceGetName(handle device, char *out, unsigned size) {
    int status = check(device);
    return status ? status : answer(out, size, fake.name);
}
API int nvmlDeviceGetArchitecture(handle device, unsigned *out) {
    int status = check(device);
    *out = 9; /* NVML_DEVICE_ARCH_HOPPER */
    return status;
}

API int nvmlDeviceGetTotalEnergyConsumption(handle device, unsigned long long *mj) {
    int status = check_whole(device);
    if (status) return status;
    if (fake.no_energy) return NOT_SUPPORTED;
    *mj = (unsigned long long)(counter_j(device->gpu, wall_s()) * 1e3);
    return SUCCESS;
}

/* The GPU's power when its sensor last moved: at that moment, or the mean of so long before. */
static double mean_w(int gpu, double window_s) {
    double t = floor_to(wall_s(), fake.power_update_s);
    if (window_s <= 0) return power_w(gpu, t);
    return (energy_j(gpu, t) - energy_j(gpu, t - window_s)) / window_s;
}
/* Part-time sensors see 25 of every 100 ms: INSTANT_WINDOW_MS=25, POWER_UPDATE_MS=100. */
static double instant_w(int gpu) { return mean_w(gpu, fake.instant_s); }
/* GetPowerUsage on most GPUs since Ampere is the mean of the last second. */
static double average_w(int gpu) { return mean_w(gpu, fake.average_s); }

API int nvmlDeviceGetPowerUsage(handle device, unsigned *mw) {
    int status = check_whole(device);
    if (status) return status;
    if (fake.no_power) return NOT_SUPPORTED;
    *mw = (unsigned)(average_w(device->gpu) * 1e3);
    return SUCCESS;
}

struct field_value {
    unsigned field, scope;
    long long timestamp, latency_us;
    int type, status;
    union { double d; unsigned ui; unsigned long long ull; } value;
};
API int nvmlDeviceGetFieldValues(handle device, int count, struct field_value *values) {
    int status = check_whole(device);
    if (status) return status;
    for (int i = 0; i < count; i++) {
        int module = values[i].scope == SCOPE_MODULE;
        int known = (values[i].field == FIELD_POWER_INSTANT || values[i].field == FIELD_POWER_AVERAGE)
                 && (values[i].scope == SCOPE_GPU || (module && fake.module_w > 0));
        values[i].type = 1; /* unsigned int */
        values[i].status = !known || fake.no_power || fake.no_field ? NOT_SUPPORTED : SUCCESS;
        if (values[i].status) continue;
        double w = values[i].field == FIELD_POWER_INSTANT ? instant_w(device->gpu)
                                                          : average_w(device->gpu);
        values[i].value.ui = (unsigned)((w + (module ? fake.module_w : 0)) * 1e3);
    }
    return SUCCESS;
}

API int nvmlDeviceGetTemperature(handle device, int sensor, unsigned *out) {
    (void)sensor;
    int status = check_whole(device);
    if (!status) *out = 30 + (unsigned)(instant_w(device->gpu) / 20);
    return status;
}
API int nvmlDeviceGetUtilizationRates(handle device, unsigned out[2]) {
    int status = check_whole(device);
    if (status) return status;
    out[0] = instant_w(device->gpu) > fake.base_w + device->gpu * fake.step_w + 1e-3 ? 100 : 50;
    out[1] = 20;
    return SUCCESS;
}
API int nvmlDeviceGetClockInfo(handle device, int type, unsigned *mhz) {
    (void)type;
    int status = check_whole(device);
    if (!status) *mhz = 1410;
    return status;
}
API int nvmlDeviceGetCurrentClocksEventReasons(handle device, unsigned long long *out) {
    int status = check_whole(device);
    if (!status) *out = 0;
    return status;
}
API int nvmlDeviceGetCurrentClocksThrottleReasons(handle device, unsigned long long *out) {
    return nvmlDeviceGetCurrentClocksEventReasons(device, out);
}
API int nvmlDeviceGetEnforcedPowerLimit(handle device, unsigned *mw) {
    int status = check_whole(device);
    if (!status) *mw = 700000;
    return status;
}
API int nvmlDeviceGetPowerManagementLimit(handle device, unsigned *mw) {
    return nvmlDeviceGetEnforcedPowerLimit(device, mw);
}

API int nvmlDeviceGetMigMode(handle device, unsigned *current, unsigned *pending) {
    int status = check_whole(device);
    if (!status) *current = *pending = fake.mig > 0;
    return status;
}
API int nvmlDeviceGetMaxMigDeviceCount(handle device, unsigned *out) {
    int status = check_whole(device);
    if (!status) *out = fake.mig ? MOST_MIG : 0;
    return status;
}
API int nvmlDeviceGetMigDeviceHandleByIndex(handle device, unsigned index, handle *out) {
    int status = check_whole(device);
    if (status) return status;
    if (index >= (unsigned)fake.mig) return NOT_FOUND;
    *out = &parts[device->gpu][index];
    return SUCCESS;
}
API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle device, handle *out) {
    int status = check(device);
    if (status) return status;
    if (device->instance < 0) return INVALID_ARGUMENT;
    *out = &whole[device->gpu];
    return SUCCESS;
}
API int nvmlDeviceIsMigDeviceHandle(handle device, unsigned *out) {
    int status = check(device);
    if (!status) *out = device->instance >= 0;
    return status;
}
struct attributes {
    unsigned multiprocessors, copy, decoder, encoder, jpeg, ofa, gpu_slices, compute_slices;
    unsigned long long memory_mb;
};
API int nvmlDeviceGetAttributes_v2(handle device, struct attributes *out) {
    int status = check(device);
    if (status) return status;
    memset(out, 0, sizeof *out);
    /* the instances share the GPU's seven slices evenly, rounded down */
    out->gpu_slices = device->instance < 0 ? MOST_MIG : (unsigned)(MOST_MIG / fake.mig);
    out->compute_slices = out->gpu_slices;
    out->multiprocessors = 14 * out->gpu_slices;
    out->memory_mb = 10240ull * out->gpu_slices;
    return SUCCESS;
}
struct memory { unsigned long long total, free, used; };
API int nvmlDeviceGetMemoryInfo(handle device, struct memory *out) {
    int status = check(device);
    if (!status) *out = (struct memory){80ull << 30, 79ull << 30, 1ull << 30};
    return status;
}

/* What perun, zeus and codecarbon ask beside that. */
API int nvmlDeviceGetPowerManagementDefaultLimit(handle device, unsigned *mw) {
    return nvmlDeviceGetEnforcedPowerLimit(device, mw);
}
API int nvmlDeviceGetPowerManagementLimitConstraints(handle device, unsigned *least, unsigned *most) {
    int status = check_whole(device);
    if (!status) *least = 200000, *most = 700000;
    return status;
}
API int nvmlDeviceGetMaxClockInfo(handle device, int type, unsigned *mhz) {
    (void)type;
    int status = check_whole(device);
    if (!status) *mhz = 1980;
    return status;
}
API int nvmlDeviceGetComputeMode(handle device, unsigned *out) {
    int status = check(device);
    if (!status) *out = 0; /* shared by all */
    return status;
}
API int nvmlDeviceGetPersistenceMode(handle device, unsigned *out) {
    int status = check_whole(device);
    if (!status) *out = 1;
    return status;
}
/* No process has a context on a GPU that is none. */
static int no_processes(handle device, unsigned *count) {
    int status = check(device);
    if (!status) *count = 0;
    return status;
}
API int nvmlDeviceGetComputeRunningProcesses_v3(handle device, unsigned *count, void *out) {
    (void)out;
    return no_processes(device, count);
}
API int nvmlDeviceGetGraphicsRunningProcesses_v3(handle device, unsigned *count, void *out) {
    (void)out;
    return no_processes(device, count);
}
struct temperature { unsigned version, sensor; int celsius; };
API int nvmlDeviceGetTemperatureV(handle device, struct temperature *out) {
    unsigned celsius = 0;
    int status = nvmlDeviceGetTemperature(device, 0, &celsius);
    if (!status) out->celsius = (int)celsius;
    return status;
}
