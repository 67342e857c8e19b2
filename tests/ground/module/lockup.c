// SPDX-License-Identifier: GPL-2.0
// Harm of the kernel's own, by its files in /sys/module/lockup/parameters: SECONDS written to `spin` lock up the last
// processor, a number written to `stuck` leaves so many threads in uninterruptible sleep for ten minutes, and Y written
// to `stop` ends both.
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/wait.h>

static int spin, stuck;
static bool stop;
static DECLARE_WAIT_QUEUE_HEAD(stopped);

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
	wait_event_timeout(stopped, READ_ONCE(stop), 600 * HZ);
	return 0;
}

static int spin_set(const char *text, const struct kernel_param *param)
{
	struct task_struct *thread;
	int error = param_set_int(text, param);

	if (error)
		return error;
	thread = kthread_create(spinning, NULL, "spin");
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	kthread_bind(thread, num_online_cpus() - 1);
	wake_up_process(thread);
	return 0;
}

static int stuck_set(const char *text, const struct kernel_param *param)
{
	int i, error = param_set_int(text, param);

	for (i = 0; !error && i < stuck; i++)
		error = PTR_ERR_OR_ZERO(kthread_run(sleeping, NULL, "stuck/%d", i));
	return error;
}

static int stop_set(const char *text, const struct kernel_param *param)
{
	int error = param_set_bool(text, param);

	wake_up_all(&stopped);
	return error;
}

static const struct kernel_param_ops spin_ops = { .set = spin_set, .get = param_get_int };
static const struct kernel_param_ops stuck_ops = { .set = stuck_set, .get = param_get_int };
static const struct kernel_param_ops stop_ops = { .set = stop_set, .get = param_get_bool };

module_param_cb(spin, &spin_ops, &spin, 0644);
module_param_cb(stuck, &stuck_ops, &stuck, 0644);
module_param_cb(stop, &stop_ops, &stop, 0644);

static int __init lockup_init(void)
{
	return 0;
}

// No exit function: a module whose code still runs must not be unloaded.
module_init(lockup_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Faults of the proving ground: a soft lockup, stuck tasks");
