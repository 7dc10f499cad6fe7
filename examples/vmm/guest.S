# The guest: a 16-bit real-mode program that does nothing but take interrupts.
#
# It runs with every segment at 0, loaded and entered at LOAD. It sets up the interrupt vectors and the 8259 pair, and
# then sleeps between interrupts until the machine asks it to stop; then it reports what it counted and powers off.
#
#   pin  0  timer   edge    reads how many ticks there have been, and rings the echo device's doorbell
#   pin  1  echo    edge    compares the answer with its question
#   pin 10  serial  level   reads what the receiver holds, echoes it to the console; the EOI lowers the line
#   pin 11  power   edge    the request to stop
#
# Upper-case names that are not defined here are ports and pins from ports.py; build_guest.py hands them to the assembler.

        .code16
        .text
        .globl  _start

        # The 8259 pair. Initialisation and operation words: Intel 8259A data sheet; ELCR: 82371 (PIIX) data sheet.
        .set    MASTER, 0x20            # command; data is one above
        .set    SLAVE, 0xA0
        .set    ELCR_SLAVE, 0x4D1       # edge/level control of pins 8..15: a 1 makes the pin level-triggered
        .set    EOI, 0x20               # OCW2: non-specific end of interrupt
        .set    VECTOR_MASTER, 0x20     # vectors of pins 0..7; they lie above the processor's exceptions
        .set    VECTOR_SLAVE, 0x28      # and of pins 8..15

        .set    STACK, 0x8000           # grows down
        .set    BUFFER, 0x8000          # one handler's worth of serial bytes
        .set    BUFFER_SIZE, 1024       # less than the receiver holds, so that it must assert its line again

_start:
        cli
        cld
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $STACK, %sp

        # Every vector counts as unexpected, until it is given a handler.
        xorw    %di, %di
        movw    $256, %cx
1:      movw    $unexpected, %ax
        stosw
        xorw    %ax, %ax
        stosw
        loop    1b
        movw    $timer, (VECTOR_MASTER + TIMER_PIN) * 4
        movw    $echo, (VECTOR_MASTER + ECHO_PIN) * 4
        movw    $spurious_master, (VECTOR_MASTER + 7) * 4
        movw    $serial, (VECTOR_SLAVE + SERIAL_PIN - 8) * 4
        movw    $power, (VECTOR_SLAVE + POWER_PIN - 8) * 4
        movw    $spurious_slave, (VECTOR_SLAVE + 7) * 4

        # The serial line is level-triggered; chosen before the controllers start, so that no edge is latched on it.
        movw    $ELCR_SLAVE, %dx
        movb    $1 << (SERIAL_PIN - 8), %al
        outb    %al, %dx

        movb    $0x11, %al              # ICW1: edge (the ELCR overrides it), cascaded, ICW4 follows
        outb    %al, $MASTER
        outb    %al, $SLAVE
        movb    $VECTOR_MASTER, %al     # ICW2: first vector
        outb    %al, $MASTER + 1
        movb    $VECTOR_SLAVE, %al
        outb    %al, $SLAVE + 1
        movb    $1 << 2, %al            # ICW3: the slave is on the master's pin 2 ...
        outb    %al, $MASTER + 1
        movb    $2, %al                 # ... and knows it
        outb    %al, $SLAVE + 1
        movb    $0x01, %al              # ICW4: 8086 mode, the EOI is ours to send
        outb    %al, $MASTER + 1
        outb    %al, $SLAVE + 1

        movb    $~(1 << TIMER_PIN | 1 << ECHO_PIN | 1 << 2) & 0xFF, %al     # OCW1: unmask ours and the cascade
        outb    %al, $MASTER + 1
        movb    $~(1 << (SERIAL_PIN - 8) | 1 << (POWER_PIN - 8)) & 0xFF, %al
        outb    %al, $SLAVE + 1

        # Tell the machine that interrupts are welcome from here on: a signal sent before would meet controllers that
        # are not set up yet, and their initialisation would forget it.
        movb    $1, %al
        movw    $READY_PORT, %dx
        outb    %al, %dx

main:
        cli                             # between the look at the flags and the hlt no interrupt may slip in
        cmpb    $0, stopping
        je      1f
        cmpb    $0, waiting             # the last answer is still on its way
        je      finish
1:      sti                             # takes effect after the next instruction: an interrupt that is pending already
        hlt                             # wakes this hlt, instead of slipping in before it
        jmp     main

finish:
        movw    $counts, %si
        movw    $(counts_end - counts) / 4, %cx
        movw    $REPORT_PORT, %dx
        rep outsl
        movb    $1, %al
        movw    $SHUTDOWN_PORT, %dx
        outb    %al, %dx
1:      hlt                             # not reached: the machine is off, and interrupts are disabled
        jmp     1b

timer:
        pushl   %eax
        pushw   %dx
        incl    timer_interrupts
        movw    $TIMER_PORT, %dx
        inl     %dx, %eax               # every tick so far: those that shared this interrupt are counted too
        movl    %eax, ticks
        cmpb    $0, waiting             # one question at a time, so that each answer belongs to one doorbell
        jne     end_master
        movb    $1, waiting
        incl    rings
        movl    rings, %eax             # the question: any number that is not the last one
        movw    $ECHO_PORT, %dx
        outl    %eax, %dx
        movb    $DOORBELL_VALUE, %al
        movw    $DOORBELL_PORT, %dx
        outb    %al, %dx
        jmp     end_master

echo:
        pushl   %eax
        pushw   %dx
        incl    echo_interrupts
        movw    $ECHO_PORT, %dx
        inl     %dx, %eax
        cmpl    rings, %eax
        je      1f
        incl    wrong_answers
1:      movb    $0, waiting
end_master:
        movb    $EOI, %al
        outb    %al, $MASTER
        popw    %dx
        popl    %eax
        iret

serial:
        pushaw
        incl    serial_interrupts
        sti                             # ticks and answers may interrupt the copying: their pins have higher priority
        movw    $SERIAL_COUNT_PORT, %dx
        inw     %dx, %ax
        cmpw    $BUFFER_SIZE, %ax
        jbe     1f
        movw    $BUFFER_SIZE, %ax       # the rest stays, and the receiver asserts its line again
1:      movw    %ax, %bx
        movw    $SERIAL_PORT, %dx
        movw    $BUFFER, %di
        movw    %bx, %cx
        shrw    $2, %cx
        rep insl                        # four bytes at a time, oldest in the lowest byte
        movw    %bx, %cx
        andw    $3, %cx
        rep insb
        movw    $CONSOLE_PORT, %dx
        movw    $BUFFER, %si
        movw    %bx, %cx
        shrw    $2, %cx
        rep outsl
        movw    %bx, %cx
        andw    $3, %cx
        rep outsb
        inb     %dx, %al                # the machine may gather what is printed; a read makes it look
        cli
        movw    %bx, %ax
        addw    %ax, bytes              # 32-bit sum of a 16-bit count
        adcw    $0, bytes + 2
        movb    $EOI, %al
        outb    %al, $SLAVE             # the line falls, and the receiver hears of it
        outb    %al, $MASTER
        popaw
        iret

power:
        pushw   %ax
        incl    power_interrupts
        movb    $1, stopping
        movb    $EOI, %al
        outb    %al, $SLAVE
        outb    %al, $MASTER
        popw    %ax
        iret

        # Pins 7 and 15 are where an 8259 sends a request that was withdrawn before it was acknowledged. No pin is in
        # service then, so no EOI may be sent; only the master is told that the slave's vector came through pin 2.
spurious_slave:
        pushw   %ax
        incl    spurious_interrupts
        movb    $EOI, %al
        outb    %al, $MASTER
        popw    %ax
        iret

spurious_master:
        incl    spurious_interrupts
        iret

unexpected:
        incl    unexpected_interrupts
        iret

        .balign 4
counts:                                 # in the order of report.GuestCounts
timer_interrupts:       .long   0
ticks:                  .long   0
rings:                  .long   0
echo_interrupts:        .long   0
wrong_answers:          .long   0
serial_interrupts:      .long   0
bytes:                  .long   0
power_interrupts:       .long   0
spurious_interrupts:    .long   0
unexpected_interrupts:  .long   0
counts_end:

waiting:        .byte   0               # a question is out and has no answer yet
stopping:       .byte   0               # the machine asked us to stop
