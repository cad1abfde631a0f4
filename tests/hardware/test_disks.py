"""The disks that are written to."""

from __future__ import annotations

import os
import shutil

import pytest

from edge.hardware.disks import mounted_disks, read_disks

PLAIN = """
22 1 0:21 / /proc rw - proc proc rw
23 1 0:22 / /sys rw - sysfs sysfs rw
25 1 0:23 / /run rw - tmpfs tmpfs rw
27 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw
28 27 259:1 / /boot/efi rw - vfat /dev/nvme0n1p1 rw
29 27 7:3 / /snap/core22/1380 ro,nodev shared:9 - squashfs /dev/loop3 ro
30 27 0:40 / /home rw - nfs4 10.0.0.1:/home rw,addr=10.0.0.1
31 27 259:2 /srv /var/lib/kubelet/pods/1/volumes/srv rw - ext4 /dev/nvme0n1p2 rw
32 27 0:50 / /mnt/remote rw - fuse.sshfs ada@far:/ rw
33 27 0:51 / /etc/pve rw - fuse /dev/fuse rw
34 27 11:0 / /media/cdrom ro - iso9660 /dev/sr0 ro
35 27 8:1 / /mnt/with\\040blank rw - fuseblk /dev/sda1 rw
36 27 0:60 / /var/lib/docker/overlay2/1/merged rw - overlay overlay rw,upperdir=/var
37 27 7:4 / /mnt/writable rw - ext4 /dev/loop4 rw
"""
OSTREE = """
60 1 0:33 / / ro,relatime - overlay composefs ro,lowerdir=/run
61 60 253:0 / /sysroot ro,relatime - ext4 /dev/mapper/root rw
62 60 253:0 /ostree/deploy/var /var rw,relatime - ext4 /dev/mapper/root rw
63 60 253:0 /ostree/etc /etc rw,relatime - ext4 /dev/mapper/root rw
"""
APPLIANCE = """
10 1 259:1 / / ro - squashfs /dev/root ro
11 10 179:8 / /data rw - f2fs /dev/mmcblk0p8 rw
12 10 0:7 / /tmp rw - tmpfs tmpfs rw
"""
CONTAINER = """
700 600 0:90 / / rw,relatime - overlay overlay rw,lowerdir=/var/lib/docker
701 700 0:93 / /proc rw - proc proc rw
702 700 0:94 / /dev rw - tmpfs tmpfs rw
"""
VOLUMES = (
    CONTAINER
    + """
703 700 259:1 /var/lib/docker/containers/7/hosts /etc/hosts rw - ext4 /dev/nvme0n1p1 rw
704 700 8:16 /models /models rw - xfs /dev/sdb rw
705 700 8:32 /shared /shared ro - xfs /dev/sdc rw
"""
)
SEVERAL = """
1 0 0:30 / / rw - zfs rpool/ROOT/ubuntu rw
2 1 0:31 / /home rw - btrfs /dev/sda3 rw,subvol=/home
3 1 0:32 / /var rw - btrfs /dev/sda3 rw,subvol=/var
4 1 8:1 / /data rw - ext4 /dev/sdb1 rw
5 1 0:99 / /data rw - nfs far:/data rw
6 1 8:2 / /errors rw - ext4 /dev/sdd1 ro,errors=remount-ro
"""


@pytest.mark.parametrize(
    ("mountinfo", "places"),
    [
        (PLAIN, ["/", "/mnt/with blank", "/mnt/writable"]),
        (OSTREE, ["/var"]),
        (APPLIANCE, ["/data"]),
        (CONTAINER, []),
        (VOLUMES, ["/etc/hosts", "/models"]),  # a single file is a door to its host's disk
        (SEVERAL, ["/", "/home"]),  # /data is hidden by what was mounted over it
        ("", []),
    ],
)
def test_disks_are_what_is_written_to_each_once(mountinfo: str, places: list[str]) -> None:
    assert mounted_disks(mountinfo.strip()) == places


def test_the_root_counts_where_there_is_no_disk_and_an_image_does_not() -> None:
    root = shutil.disk_usage("/")
    for mountinfo in (CONTAINER, ""):
        fullest = read_disks(mountinfo.strip()).fullest
        assert fullest
        assert fullest.total == root.total
    with pytest.raises(OSError, match="none is written to"):
        read_disks("10 1 259:1 / / ro - squashfs /dev/root ro")


def test_the_fullest_counts_and_one_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(place: str) -> tuple[int, int, int]:
        if place == "/":
            raise OSError(5, os.strerror(5))
        return {"/mnt/with blank": (1000, 100, 900), "/mnt/writable": (10, 9, 1)}[place]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    assert read_disks(PLAIN.strip()) == ((10, 9), ["disk / can't be read (Input/output error)"])
    assert read_disks("") == (None, ["disk / can't be read (Input/output error)"])
