#!/bin/busybox sh
# The guest's first program: what cases need of a system, then the runner.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
echo 6 >/proc/sys/kernel/printk
ip link set lo up
modprobe vfio_iommu_type1
modprobe vfio-pci
if grep -q peerfs-lab=console /proc/cmdline; then
    echo "The controllers are nvme:0000:00:04.0 (with PMR) and nvme:0000:00:05.0 (with CMB). \`exit\` ends the machine."
    setsid cttyhack sh
else
    peerfs-lab guest
fi
poweroff -f
