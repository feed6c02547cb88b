"""A link that delays and loses packets: a TUN device that sends every packet back with the two
addresses exchanged, later, or not at all. Who connects to an address behind the device reaches
his own machine. Stands for netem, which many kernels lack. Arguments: device, delay in seconds,
chance of a loss; a line of standard input with the two changes them, and its end ends the link."""
import fcntl
import heapq
import os
import random
import select
import struct
import sys
import time

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
name, delay, loss = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
print("ready", flush=True)
chance = random.Random(7)
under_way = []
number = 0
while True:
    wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
    readable, _, _ = select.select([tun, sys.stdin], [], [], wait)
    if sys.stdin in readable:
        line = sys.stdin.readline().split()
        if not line:
            break
        delay, loss = map(float, line)
    if tun in readable:
        packet = os.read(tun, 65536)
        if packet[0] >> 4 == 4 and chance.random() >= loss:
            # The sum of the checksums does not change when addresses change places.
            packet = packet[:12] + packet[16:20] + packet[12:16] + packet[20:]
            number += 1
            heapq.heappush(under_way, (time.monotonic() + delay, number, packet))
    while under_way and under_way[0][0] <= time.monotonic():
        os.write(tun, heapq.heappop(under_way)[2])
