/*
 * The calls of libkrun's C API that iii-krun makes, for its build with the feature system-libkrun
 * against the recording stand-in. Types and order of arguments are those of libkrun 1.19. No header
 * of the system is included, so that libclang alone is enough to read it.
 */
#ifndef III_LIBKRUN_H
#define III_LIBKRUN_H

typedef unsigned char uint8_t;
typedef unsigned int uint32_t;
typedef int int32_t;
typedef unsigned long long uint64_t;
#define bool _Bool

int32_t krun_init_log(int target_fd, uint32_t level, uint32_t style, uint32_t options);
int32_t krun_has_feature(uint64_t feature);
int32_t krun_create_ctx(void);
int32_t krun_set_vm_config(uint32_t ctx_id, uint8_t num_vcpus, uint32_t ram_mib);
int32_t krun_disable_implicit_init(uint32_t ctx_id);
int32_t krun_disable_implicit_vsock(uint32_t ctx_id);
int32_t krun_set_kernel(uint32_t ctx_id, const char *kernel_path, uint32_t kernel_format,
                        const char *initramfs, const char *cmdline);
int32_t krun_set_console_output(uint32_t ctx_id, const char *filepath);
int32_t krun_add_virtio_console_multiport(uint32_t ctx_id);
int32_t krun_add_console_port_inout(uint32_t ctx_id, uint32_t console_id, const char *name,
                                    int input_fd, int output_fd);
int32_t krun_add_virtiofs4(uint32_t ctx_id, const char *tag, const char *path, uint64_t shm_size,
                           bool read_only, uint32_t semantics);
int32_t krun_add_disk3(uint32_t ctx_id, const char *block_id, const char *disk_path,
                       uint32_t disk_format, bool read_only, bool direct_io, uint32_t sync_mode);
int32_t krun_add_net_unixgram(uint32_t ctx_id, const char *path, int fd, uint8_t *const mac,
                              uint32_t features, uint32_t flags);
int32_t krun_add_net_unixstream(uint32_t ctx_id, const char *path, int fd, uint8_t *const mac,
                                uint32_t features, uint32_t flags);
int32_t krun_start_enter(uint32_t ctx_id);

#endif
