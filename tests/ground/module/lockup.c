// SPDX-License-Identifier: GPL-2.0
// Locks up a processor (spin=SECONDS), or leaves kernel threads in uninterruptible sleep (stuck=THREADS, for
// seconds=SECONDS). Both end early when Y is written to /sys/module/lockup/parameters/stop.
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/wait.h>

static int spin, stuck, seconds = 60;
static bool stop;
static DECLARE_WAIT_QUEUE_HEAD(stopped);

static int stop_set(const char *text, const struct kernel_param *param)
{
	int error = param_set_bool(text, param);

	wake_up_all(&stopped);
	return error;
}

static const struct kernel_param_ops stop_ops = { .set = stop_set, .get = param_get_bool };

module_param(spin, int, 0444);
module_param(stuck, int, 0444);
module_param(seconds, int, 0444);
module_param_cb(stop, &stop_ops, &stop, 0644);

// No preemption: the watchdog's thread never gets this processor.
static int spinning(void *unused)
{
	int left;

	preempt_disable();
	for (left = spin * 1000; left > 0 && !READ_ONCE(stop); left--)
		mdelay(1);
	preempt_enable();
	return 0;
}

// One sleep, not many short ones: a task that ran in between is not hung to the kernel.
static int sleeping(void *unused)
{
	wait_event_timeout(stopped, READ_ONCE(stop), seconds * HZ);
	return 0;
}

static int __init lockup_init(void)
{
	int i;

	for (i = 0; i < stuck; i++)
		kthread_run(sleeping, NULL, "stuck/%d", i);
	if (spin)
		kthread_run(spinning, NULL, "spin");
	return 0;
}

// No exit function: a module whose code still runs must not be unloaded.
module_init(lockup_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Faults of the proving ground: a soft lockup, stuck tasks");
