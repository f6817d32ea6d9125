create table account (
  id int primary key,
  balance bigint not null
);
create table ledger (
  n bigint primary key,
  source int not null references account,
  target int not null references account,
  amount bigint not null,
  note text not null
);
insert into account select id, 1000 from generate_series(0, 99) as id;

-- What transaction n does follows from n alone, so that anyone can say what must be there.
create procedure transfer(n bigint) language plpgsql as $$
declare
  source int := n % 100;
  target int := (n * 7 + 1) % 100;
  amount bigint := n % 50;
begin
  insert into ledger values (n, source, target, amount, repeat(md5(n::text), 8));
  update account set balance = balance - amount where id = source;
  update account set balance = balance + amount where id = target;
end
$$;
