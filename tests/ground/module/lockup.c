// SPDX-License-Identifier: GPL-2.0
// Locks up a processor for some seconds (spin=), or leaves kernel threads in uninterruptible sleep (stuck=, seconds=).
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/module.h>

static int spin, stuck, seconds = 30;
module_param(spin, int, 0444);
module_param(stuck, int, 0444);
module_param(seconds, int, 0444);

// No preemption: the watchdog's thread never gets this processor.
static int spinning(void *unused)
{
	int left;

	preempt_disable();
	for (left = spin * 1000; left > 0; left--)
		mdelay(1);
	preempt_enable();
	return 0;
}

static int sleeping(void *unused)
{
	schedule_timeout_uninterruptible(seconds * HZ);
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
