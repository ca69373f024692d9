#!/bin/sh
# The lab guest's only process tree: loads the drivers, then burns CPU as told. BusyBox ash.
# virtpilot.load=PERCENT on the kernel command line is the duty at boot. At run time the virtio-serial port takes
# "load PERCENT [ID]", "dirty MIB [ID]" (so much of its memory changed all the time) and "deaf 1 [ID]" (to its power
# button; 0: no longer) and answers with the same line, as it does to "read COUNT" and "eat MIB" when the disk was read
# or memory filled; "time" is answered with the guest's clock, uptime and hardware address, "see 0" with the CPUs online and MemTotal.
# "wake EPOCH,MAC" is for one that runs on with the memory of another: what time it is, and its own hardware address.
# With virtpilot.cpus=agent its CPUs are the guest agent's to use.
busybox mkdir -p /proc /sys /dev /run
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t devtmpfs dev /dev 2>/dev/null
while read -r module; do busybox insmod "/modules/$module"; done </modules/order

load=0 leave_cpus=
read -r words </proc/cmdline
for word in $words; do
  case $word in
    virtpilot.load=*) load=${word#*=} ;;
    virtpilot.cpus=agent) leave_cpus=1 ;;
  esac
done

busybox mkfifo /run/orders
exec 3<>/run/orders
busybox mkfifo /run/dirt
exec 7<>/run/dirt
busybox mkfifo /run/never
exec 5<>/run/never

# Time in microseconds: "1795433539.486351" without its point.
now() { time=$EPOCHREALTIME; time=${time%.*}${time#*.}; }

# Sleeps for so many seconds without a new process: reads what nobody ever writes.
nap() { read -r -t "$1" _ <&5; }

# Periods of 100 ms of wall time: `load` ms of counting, the rest asleep. Orders are read without a time limit, which
# could end between two characters of one.
burn() {
  while :; do
    if [ "$load" -le 0 ] || read -r -t 0 _ <&3; then read -r load <&3; continue; fi
    now; end=$((time + load * 1000))
    while [ "$time" -lt "$end" ]; do
      i=0; while [ $i -lt 100 ]; do i=$((i + 1)); done
      now
    done
    rest=$((100 - load))
    if [ $rest -ge 10 ]; then nap 0.0$rest; elif [ $rest -gt 0 ]; then nap 0.00$rest; fi
  done
}

online_cpus() {
  [ -z "$leave_cpus" ] || return
  for file in /sys/devices/system/cpu/cpu[0-9]*/online; do
    [ -e "$file" ] || continue
    read -r state <"$file"
    [ "$state" = 1 ] || echo 1 >"$file"
  done
}

# Memory changed as fast as the emulated CPU can: so many MiB of noise are copied over and over. Without an order it
# sleeps, and begins no process: a guest that idles must leave its host alone.
scribble() {
  size=0
  while :; do
    if [ "$size" -le 0 ] || read -r -t 0 _ <&7; then
      busybox rm -f /run/noise /run/page
      read -r size <&7
      [ "$size" -le 0 ] || busybox dd if=/dev/urandom of=/run/noise bs=1M count="$size" 2>/dev/null
      continue
    fi
    busybox dd if=/run/noise of=/run/page bs=1M conv=notrunc 2>/dev/null
  done
}

# A port without a listener on the host's side reads as closed: look again in a while.
listen() {
  for port in /dev/vport*p1; do exec 4<>"$port"; done  # a redirection does not expand patterns
  while :; do
    if read -r verb value id <&4; then
      case $verb in
        load)
          case $value in
            '' | *[!0-9]* | ????*) echo "refused $value $id" >&4 ;;
            *) echo "$value" >&3; echo "load $value $id" >&4 ;;
          esac
          ;;
        dirty)
          case $value in
            '' | *[!0-9]*) ;;
            *) echo "$value" >&7; echo "dirty $value $id" >&4 ;;
          esac
          ;;
        deaf) if [ "$value" = 1 ]; then echo >/run/deaf; else busybox rm -f /run/deaf; fi; echo "deaf $value $id" >&4 ;;
        see)
          read -r cpus </sys/devices/system/cpu/online
          while read -r name size _; do [ "$name" = MemTotal: ] && break; done </proc/meminfo
          echo "see $cpus $size $id" >&4
          ;;
        read) busybox dd if=/dev/vda of=/dev/null bs=64k count="$value" iflag=direct 2>/dev/null; echo "read $value $id" >&4 ;;
        eat)
          [ -d /eaten ] || { busybox mkdir /eaten; busybox mount -t tmpfs -o size=100% eaten /eaten; }
          busybox dd if=/dev/zero of=/eaten/all bs=1M count="$value" 2>/dev/null
          echo "eat $value $id" >&4
          ;;
        wake)
          busybox date -u -s "@${value%,*}" >/dev/null
          busybox ip link set eth0 address "${value#*,}"
          echo "wake $value $id" >&4
          ;;
        time)
          read -r up _ </proc/uptime
          read -r address </sys/class/net/eth0/address
          echo "time $EPOCHREALTIME $up $address $id" >&4
          ;;
      esac
    else
      nap 0.5
      online_cpus
    fi
  done
}

# The small disk is read now and then, so that there is disk traffic to measure.
browse() {
  while [ -b /dev/vda ]; do
    busybox dd if=/dev/vda of=/dev/null bs=64k count=4 iflag=direct 2>/dev/null
    nap 5
  done
}

# QEMU's guest agent, where the image has it and the definition a port for it; it tells of the disk's file system.
answer() {
  for port in /dev/vport*p2; do
    [ -x /bin/qemu-ga ] && [ -e "$port" ] || return
    busybox mkdir -p /data /run
    busybox mount -t ext4 -o ro /dev/vda /data
    qemu-ga --method=virtio-serial --path="$port" --statedir=/run
  done
}

# The power button, as libvirt presses it to shut a guest down or reboot it: 24 bytes an event, key 116 going down.
obey() {
  while :; do
    set -- $(busybox dd bs=24 count=1 2>/dev/null | busybox hexdump -v -e '1/2 "%d "')
    if [ "${9:-} ${10:-} ${11:-}" = "1 116 1" ] && [ ! -e /run/deaf ]; then busybox poweroff -f; fi
  done
}

[ -d /sys/class/net/eth0 ] && busybox ip link set eth0 up
echo "virtpilot lab guest: up, load $load"
burn &
# Opened here: whoever has had an answer from the port is heard on the button as well.
for button in /dev/input/event*; do
  [ -e "$button" ] || continue
  exec 6<"$button"
  obey <&6 &
done
browse &
scribble &
answer &
listen
