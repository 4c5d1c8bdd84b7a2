package dev.shadowkv.llm;

import java.util.Objects;
import java.util.Queue;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.Flow;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;

/**
 * Tokens of one request for one subscriber. Subscribing submits the request; cancelling the subscription cancels it.
 * Tokens that were not asked for yet are kept: there are at most as many as the request allows. Signals are given by the
 * engine's thread, or by the one that asks for more; there is no other.
 */
final class TokenPublisher implements Flow.Publisher<Integer> {
    private final Engine engine;
    private final GenerationRequest request;
    private final AtomicBoolean taken = new AtomicBoolean();

    TokenPublisher(Engine engine, GenerationRequest request) {
        this.engine = engine;
        this.request = Objects.requireNonNull(request, "request");
    }

    @Override
    public void subscribe(Flow.Subscriber<? super Integer> subscriber) {
        Objects.requireNonNull(subscriber, "subscriber");
        if (!taken.compareAndSet(false, true)) {
            subscriber.onSubscribe(new Flow.Subscription() {
                @Override
                public void request(long count) {}

                @Override
                public void cancel() {}
            });
            subscriber.onError(new IllegalStateException("this request has a subscriber already"));
            return;
        }
        Delivery delivery = new Delivery(subscriber);
        subscriber.onSubscribe(delivery);
        delivery.begin();
    }

    private final class Delivery implements Flow.Subscription, TokenListener {
        private final Flow.Subscriber<? super Integer> subscriber;
        private final Queue<Integer> waiting = new ConcurrentLinkedQueue<>();
        private final AtomicLong demand = new AtomicLong();
        private final AtomicInteger rounds = new AtomicInteger();
        private volatile Generation generation;
        private volatile boolean ended;
        private volatile Throwable failure;
        private volatile boolean cancelled;
        /** For the thread that delivers. */
        private boolean signalled;

        Delivery(Flow.Subscriber<? super Integer> subscriber) {
            this.subscriber = subscriber;
        }

        void begin() {
            if (cancelled || ended) {
                return;
            }
            try {
                generation = engine.submit(request, this);
            } catch (RuntimeException e) {
                end(e);
                return;
            }
            if (cancelled) {
                generation.cancel();
            }
            generation.outcome().whenComplete((completion, thrown) -> end(thrown));
        }

        private void end(Throwable thrown) {
            if (failure == null) {
                failure = thrown;
            }
            ended = true;
            deliver();
        }

        @Override
        public void onToken(int index, int id) {
            waiting.add(id);
            deliver();
        }

        @Override
        public void request(long count) {
            if (count <= 0) {
                stop();
                end(new IllegalArgumentException("a demand must be positive: " + count));
                return;
            }
            demand.accumulateAndGet(count, (a, b) -> a + b < 0 ? Long.MAX_VALUE : a + b);
            deliver();
        }

        @Override
        public void cancel() {
            cancelled = true;
            stop();
        }

        private void stop() {
            Generation running = generation;
            if (running != null) {
                running.cancel();
            }
        }

        /** One thread at a time delivers; others leave their round to it. */
        private void deliver() {
            if (rounds.getAndIncrement() != 0) {
                return;
            }
            int seen = 1;
            do {
                deliverOnce();
                seen = rounds.addAndGet(-seen);
            } while (seen != 0);
        }

        private void deliverOnce() {
            boolean last = ended;
            while (!cancelled && !signalled && demand.get() > 0 && !waiting.isEmpty()) {
                demand.decrementAndGet();
                subscriber.onNext(waiting.remove());
            }
            if (last && !cancelled && !signalled && (failure != null || waiting.isEmpty())) {
                signalled = true;
                if (failure == null) {
                    subscriber.onComplete();
                } else {
                    subscriber.onError(failure);
                }
            }
        }
    }
}
